"""Checkpoints: every file under a manifest whose checksums fit, and the manifest itself."""

from __future__ import annotations

import copy
import io
import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.fuzz import json_damage
from tests.fuzz.capsule_targets import one_process
from tests.fuzz.target import Target
from tests.helpers.files.mutations import mutate
from tests.helpers.references.network import SHAPE

# What attributes of metadata, and fields of the common part, are replaced by.
_VALUES: tuple[Any, ...] = (
    *(None, True, 0, 1, -1, 3, 2**31, 2**40, 2**62, 2**63, 10**30, 1.5, float("nan"), "", "x", "../x", "\0"),
    *((), [], {}, (0,), [0], torch.Size([0]), torch.Size([2**40]), torch.Size([3, 3]), torch.float16, torch.Size([-1])),
)


_RUN: dict[str, Any] = {
    "config": {"model": dict(SHAPE), "optimizer": {"hysteresis": 2}, "train": {"seq_length": 8}},
    "phases": [{"name": "first", "tokens": 800, "order": "xxh3:0", "corpora": {"web": "xxh3:1+2"}}],
    "tokenizer": {"file": "tokenizer.json", "fingerprint": "xxh3:2", "vocab_size": 300, "eod_id": 0},
    "versions": {"torch": "2"},
    "world_size": 1,
}


def _make(file: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        from megatron.core.dist_checkpointing.mapping import ShardedObject

        from megatron_kaiyuan.checkpoint.load import whole
        from megatron_kaiyuan.checkpoint.save import save_folder

        torch.manual_seed(1)
        weights = {"decoder.layers.mlp.weight": torch.randn(2, 5, 3), "output_layer.weight": torch.randn(4, 3)}
        state = {
            **whole(weights),
            "state": ShardedObject("state", {"of": "an object"}, (1,), (0,)),
            "run": copy.deepcopy(_RUN),
            "progress": {"step": 1, "tokens": 64, "left_out": [[3, 5]]},
        }
        step = folder / "checkpoints" / "step_1"
        save_folder(step, state, step=1, tokens=64, scheduled=True)
        return step / file

    return make


def _seal(path: Path) -> None:
    from megatron_kaiyuan.checkpoint.layout import write_manifest

    write_manifest(path.parent, step=1, tokens=64, scheduled=True)


def _load(path: Path) -> Any:
    from megatron_kaiyuan.checkpoint.load import load_weights

    return {name: list(tensor.shape) for name, tensor in load_weights(path.parent).items()}


def _load_values(path: Path) -> Any:
    """For files whose numbers are those of the whole one, or refused."""
    from megatron_kaiyuan.checkpoint.load import load_weights

    load_weights(path.parent)


def _common(path: Path) -> Any:
    from megatron_kaiyuan.checkpoint.load import load_common, model_of

    model_of(path.parent, load_common(path.parent)["run"])


def _compare(path: Path) -> Any:
    """A resume looks at what the checkpoint says of its run, and `checkpoint diff` at everything."""
    from megatron_kaiyuan.checkpoint.difference import difference
    from megatron_kaiyuan.train.resume import _accept

    _accept(path.parent, copy.deepcopy(_RUN))
    found = difference(path.parent, path.parent)
    json.dumps(found.as_json())
    found.lines(), found.summary()


def _list(path: Path) -> Any:
    from megatron_kaiyuan.checkpoint.average import Selection, select
    from megatron_kaiyuan.checkpoint.listing import as_json, as_table, list_checkpoints
    from megatron_kaiyuan.checkpoint.retention import Retention, removable

    run_dir = path.parent.parent.parent
    listed = list_checkpoints(run_dir)
    as_table(listed), json.dumps(as_json(listed))
    removable(run_dir, Retention(2, keep_every_tokens=5))
    if listed[0].problem is None and listed[0].scheduled:
        select(run_dir, Selection(last=1))


def _verify(path: Path) -> Any:
    from megatron_kaiyuan.checkpoint.verify import verify

    verify(path.parent)


def _damaged_pickle(raw: bytes, seed: int) -> bytes:
    """Attributes, keys and entries of the metadata, or bytes."""
    generator = random.Random(seed)
    if generator.random() < 0.4:
        return mutate(raw, seed)
    metadata = pickle.loads(raw)
    # Once: what a first change leaves may have no entries.
    objects = _objects(metadata)
    try:
        for _ in range(generator.choice((1, 1, 2))):
            _change(generator.choice(objects), generator)
        return pickle.dumps(metadata)
    except Exception:  # a key that has no hash any more
        return mutate(raw, seed)


def _objects(metadata: Any) -> list[Any]:
    found: list[Any] = [metadata, metadata.state_dict_metadata, metadata.storage_data]
    for entry in metadata.state_dict_metadata.values():
        found += [entry, *getattr(entry, "chunks", [])]
        found += [entry.properties] if hasattr(entry, "properties") else []
    return [*found, *metadata.storage_data, *metadata.storage_data.values()] * 2


def _change(thing: Any, generator: random.Random) -> None:
    if isinstance(thing, dict):
        key = generator.choice(list(thing) or [""])
        match generator.randrange(3):
            case 0:
                thing.pop(key, None)
            case 1:
                thing[key] = copy.deepcopy(generator.choice([*_VALUES, *thing.values()]))
            case 2:
                thing[generator.choice(("other", "state/shard_0_9", "a/b", ""))] = thing.get(key)
        return
    if isinstance(thing, tuple) or not hasattr(thing, "__dict__"):
        return
    if names := list(vars(thing)):
        # Frozen classes too.
        object.__setattr__(thing, generator.choice(names), copy.deepcopy(generator.choice(_VALUES)))


def _damaged_common(raw: bytes, seed: int) -> bytes:
    generator = random.Random(seed)
    if generator.random() < 0.3:
        return mutate(raw, seed)
    content = torch.load(io.BytesIO(raw), weights_only=True)
    content = json_damage.damaged(content, generator)
    if generator.random() < 0.2 and isinstance(content, dict) and isinstance(content.get("run"), dict):
        content["run"][generator.choice(list(content["run"]) or [""])] = generator.choice((torch.ones(2), {1: 2}, b"a"))
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def _target(name: str, file: str, damage: Callable[[bytes, int], bytes], *read: Callable[[Path], Any]) -> Target:
    return Target(f"checkpoint-{name}", _make(file), damage, read, None if name == "manifest" else _seal, one_process)


TARGETS = (
    _target("manifest", "manifest.json", json_damage.sealed, _verify, _list, _load),
    _target("metadata", ".metadata", _damaged_pickle, _load_values),
    _target("backend", "metadata.json", json_damage.plain, _load),
    _target("common", "common.pt", _damaged_common, _common, _compare),
    _target("shard", "__0_0.distcp", mutate, _load_values),
)
