"""A capsule: one part of a network (embedding, a layer or the head) as it was when a tensor left the range.

A folder of two files. `tensors.pt` holds tensors only, in three dictionaries:

    inputs   of the part: tokens and position_ids; hidden [s, b, h], and documents for a layer or labels for the
             head; output_gradient after an overflow in the backward pass
    weights  whole ones by their name in the part, in the precision of the run
    random   state of the generators of the host and of the device (nothing draws from them without dropout)

`capsule.json`, written last and sealed, says what it is and what left the range (`Manifest`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from torch.utils.hooks import RemovableHandle

from megatron_kaiyuan.config import ModelConfig, parse
from megatron_kaiyuan.errors import UserError, excerpt
from megatron_kaiyuan.files import atomic_path, checksum, read_sealed_json, write_sealed_json
from megatron_kaiyuan.forms import require_form
from megatron_kaiyuan.monitor.capsule_form import CapsuleForm, require_capsule
from megatron_kaiyuan.monitor.first_out_of_range import MicroBatches, Seen, part_weights
from megatron_kaiyuan.network import current_name

Tensors: TypeAlias = dict[str, dict[str, torch.Tensor]]

_MANIFEST, _TENSORS = "capsule.json", "tensors.pt"
_FORMAT, _VERSION = "kaiyuan overflow capsule", 2


class Capture:
    """Keeps what one part on this rank was given in one micro-batch, while the step runs.

    Attributes:
        handles: of its hooks.
    """

    def __init__(self, network: GPTModel, seen: Seen, micro_batch: int):
        self._network, self._seen, self._micro_batch = network, seen, micro_batch
        self._at = MicroBatches(network)
        self._inputs: dict[str, torch.Tensor] = {}
        begin: Any
        end: Any
        if seen.part == "layer":
            begin = end = next(layer for layer in network.decoder.layers if layer.layer_number == seen.layer)
        elif seen.part == "head":
            begin, end = network.decoder.final_layernorm, network
        else:
            begin, end = None, network.embedding
        self._owner = begin if seen.part == "layer" else network
        self.handles: list[RemovableHandle] = [
            *self._at.handles,
            network.register_forward_pre_hook(self._begin, with_kwargs=True),
            end.register_forward_hook(self._output),
        ]
        if begin is not None:
            self.handles.append(begin.register_forward_pre_hook(self._input, with_kwargs=True))

    def whole(self) -> Tensors:
        """What a capsule holds, gathered over tensor-parallel ranks: the same on each of them, on the host.

        Collective over them.
        """
        sequence = self._network.config.sequence_parallel
        inputs = {
            name: _gathered(tensor, 0) if sequence and self._is_cut(name) else tensor
            for name, tensor in self._inputs.items()
        }
        weights = {
            name: _whole_weight(name, weight) for name, weight in part_weights(self._owner, self._seen.part).items()
        }
        return {"inputs": _on_host(inputs), "weights": _on_host(weights)}

    def _is_cut(self, name: str) -> bool:
        """With sequence parallelism each rank has a part of [s, b, h]; losses [b, s] are whole everywhere."""
        return name == "hidden" or (name == "output_gradient" and self._seen.part != "head")

    def _begin(self, module: torch.nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        tokens_bs, position_ids_bs, documents_bs = inputs
        if self._seen.part == "embedding":
            self._keep("tokens", tokens_bs)
            self._keep("position_ids", position_ids_bs)
        elif self._seen.part == "head":
            self._keep("labels", options["labels"])
        elif documents_bs is not None:
            self._keep("documents", documents_bs)

    def _input(self, module: torch.nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        self._keep("hidden", inputs[0] if inputs else options["hidden_states"])

    def _output(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        # What is recomputed has its gradient in the second forward pass. A hook of the first one, which has none, would
        # keep later hooks of the same tensor from being called.
        if self._seen.direction == "backward" and torch.is_grad_enabled() and tensor.requires_grad:
            tensor.register_hook(self._gradient)

    def _gradient(self, gradient: torch.Tensor) -> None:
        if self._at.backward == self._micro_batch:
            self._inputs["output_gradient"] = gradient.detach().clone()

    def _keep(self, name: str, tensor: torch.Tensor) -> None:
        # The first time: what is recomputed later may be another micro-batch's.
        if self._at.forward == self._micro_batch and name not in self._inputs:
            self._inputs[name] = tensor.detach().clone()


def _on_host(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.cpu() for name, tensor in tensors.items()}


def _whole_weight(name: str, weight: torch.nn.Parameter) -> torch.Tensor:
    """A weight as it is without tensor parallelism."""
    if not getattr(weight, "tensor_model_parallel", False):
        return weight.detach()
    dimension: int = weight.partition_dim  # type: ignore[attr-defined]
    if name == "mlp.linear_fc1.weight":
        # Each rank has rows of the gate, then the same rows of the other half.
        return torch.cat([_gathered(half, dimension) for half in weight.detach().chunk(2)])
    return _gathered(weight.detach(), dimension)


def _gathered(tensor: torch.Tensor, dimension: int) -> torch.Tensor:
    group = parallel_state.get_tensor_model_parallel_group()
    parts = [torch.empty_like(tensor) for _ in range(group.size())]
    torch.distributed.all_gather(parts, tensor.contiguous(), group=group)
    return torch.cat(parts, dimension)


def write_capsule(folder: Path, manifest: dict[str, Any], tensors: Tensors) -> int:
    """Write a capsule, whole or not at all; one that is there is replaced. Bytes on disk."""
    with atomic_path(folder, replace_folder=True) as temporary:
        temporary.mkdir()
        file = temporary / _TENSORS
        torch.save(tensors, file)
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            **manifest,
            "tensors": {"bytes": file.stat().st_size, "checksum": checksum(file)},
        }
        write_sealed_json(temporary / _MANIFEST, content)
    return sum(path.stat().st_size for path in folder.iterdir())


def read_capsule(folder: Path) -> tuple[dict[str, Any], ModelConfig, Tensors]:
    """Manifest, model and tensors of a capsule, whole to the bit and fit for each other; nothing in it is executed.

    What an earlier version named otherwise has the names of this one, except in `message`.

    Raises:
        UserError: there is none, or it is damaged, or of another version.
    """
    path, file = folder / _MANIFEST, folder / _TENSORS
    manifest = read_sealed_json(path, "overflow capsule")
    if manifest.get("format") != _FORMAT:
        raise UserError(f"{path}: is not an overflow capsule; name a folder RUN_DIR/overflow/step_N")
    if manifest.get("version") != _VERSION:
        raise UserError(
            f"{path}: has version {excerpt(manifest.get('version'))}, and this is for version {_VERSION}; "
            "replay it with the code that wrote it, see its 'versions'"
        )
    form = require_form(path, manifest, CapsuleForm, "copy it again")
    model = parse(ModelConfig, form.model, source=f"{path}: model")
    if not file.is_file():
        raise UserError(f"{file}: not found; copy the whole folder of the capsule")
    if (found := checksum(file)) != form.tensors.checksum:
        raise UserError(f"{file}: damaged, its checksum is {found} instead of {form.tensors.checksum}; copy it again")
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    # What its unpickler meets in a file of another make has no common class.
    except Exception as error:
        raise UserError(f"{file}: cannot be read ({excerpt(error)}); copy it again") from error
    require_capsule(file, form, model, tensors)
    return _under_current_names(manifest), model, {**tensors, "weights": _renamed(tensors["weights"])}


def _under_current_names(manifest: dict[str, Any]) -> dict[str, Any]:
    seen = {name: current_name(value) if isinstance(value, str) else value for name, value in manifest["seen"].items()}
    return {**manifest, "seen": seen}


def _renamed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {current_name(name): weight for name, weight in weights.items()}
