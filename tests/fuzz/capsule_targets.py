"""Capsules of each part: the manifest, and tensors under a manifest whose checksum fits them."""

from __future__ import annotations

import contextlib
import io
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from megatron_kaiyuan.files import checksum
from tests.fuzz import json_damage
from tests.fuzz.target import Target
from tests.helpers.files.mutations import mutate


@contextlib.contextmanager
def one_process() -> Iterator[None]:
    """megatron-core's process groups of one."""
    from megatron_kaiyuan import platform

    device = platform.activate("cpu")
    from megatron_kaiyuan.cluster.groups import single_process

    with single_process(device):
        yield


_TYPES = (torch.float64, torch.int32, torch.bool, torch.complex64)


def _make(part: str, direction: str, file: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        from tests.helpers.training.small_capsule import make_capsule

        make_capsule(folder / "capsule", part, direction)
        return folder / "capsule" / file

    return make


def _replay(path: Path) -> Any:
    from megatron_kaiyuan import platform
    from megatron_kaiyuan.monitor.replay import as_json, as_text, replay

    result = replay(path.parent, platform.current(), None)
    as_text(result)
    json.dumps(as_json(result))


def _damaged_tensors(raw: bytes, seed: int) -> bytes:
    generator = random.Random(seed)
    if generator.random() < 0.3:
        return mutate(raw, seed)
    tensors = torch.load(io.BytesIO(raw), weights_only=True)
    group = generator.choice(list(tensors))
    name = generator.choice(list(tensors[group]))
    tensor = tensors[group][name]
    match generator.randrange(8):
        case 0:
            del tensors[group][name]
        case 1:
            tensors[group][name] = generator.choice((None, 3, "text", [tensor], {"a": tensor}, tensor.tolist()))
        case 2:
            tensors[group][name] = tensor[:-1].clone()
        case 3:
            tensors[group][name] = tensor.to(
                generator.choice((torch.float64, torch.int32, torch.bool, torch.complex64))
            )
        case 4:
            tensors[group][name] = tensor.reshape(-1)
        case 5:
            tensors[group] = generator.choice((None, [], {}, tensor, {3: tensor}))
        case 6:
            tensors[group]["other"] = generator.choice((tensor, None, tensor.to_sparse()))
        case 7:
            tensors[group][name] = generator.choice((tensor * 0 - 1, tensor * 0 + 2**30, tensor[:0].clone()))
    file = io.BytesIO()
    torch.save(generator.choice((tensors, tensors, tensors, list(tensors.values()))), file)
    return file.getvalue()


def _seal(path: Path) -> None:
    manifest = path.with_name("capsule.json")
    content = json.loads(manifest.read_bytes())
    content["tensors"] = {"bytes": path.stat().st_size, "checksum": checksum(path)}
    manifest.write_bytes(json_damage.seal({name: value for name, value in content.items() if name != "seal"}))


def _manifest(part: str, direction: str) -> Target:
    make = _make(part, direction, "capsule.json")
    return Target(f"capsule-{part}", make, json_damage.sealed, [_replay], None, one_process)


def _tensors(part: str, direction: str) -> Target:
    make = _make(part, direction, "tensors.pt")
    return Target(f"capsule-tensors-{part}", make, _damaged_tensors, [_replay], _seal, one_process)


TARGETS = (
    _manifest("layer", "backward"),
    _manifest("head", "backward"),
    _manifest("embedding", "forward"),
    _tensors("layer", "backward"),
    _tensors("head", "backward"),
    _tensors("embedding", "backward"),
)
