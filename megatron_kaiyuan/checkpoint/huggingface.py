"""A Hugging Face folder of this network, in one of the formats that export writes: its description and its weights.

`kaiyuan` is the network itself. `gemma3` is the same with other numbers (`model/gemma3.py`), `qwen3` the one without
closing norms and soft cap, which others train too. Nothing of a folder is executed: config.json, index and manifest are
JSON, safetensors files hold numbers only, and are read weight by weight.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from megatron_kaiyuan.checkpoint.folder_config import FolderConfig
from megatron_kaiyuan.config import ModelConfig
from megatron_kaiyuan.errors import UserError, excerpt, require
from megatron_kaiyuan.files import checksum, read_json, read_sealed_json
from megatron_kaiyuan.forms import FileName, Form, Recorded, require_form
from megatron_kaiyuan.model import gemma3, names
from megatron_kaiyuan.network import (
    EMBEDDING,
    GATE_AND_UP,
    HEAD,
    LAYERS,
    QKV,
    layer_weights,
    outer_weights,
)
from megatron_kaiyuan.outputs import RECORD

# What the manifest of an exported folder calls itself.
EXPORT_FORMAT = "kaiyuan-export"
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_NUMBERED = re.compile(re.escape(LAYERS) + r"(\d+)\.(.+)")
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}
_REMEDY = "copy it again from where it came"


class _Index(Form):
    weight_map: dict[str, FileName]


class _Export(Form):
    of_dtype: str
    model: dict[str, Any]


class ExportRecord(Recorded):
    """What the manifest of an exported folder says of it."""

    export: _Export
    seq_length: int | None = None
    tokenizer: dict[str, Any] | None = None


def numbered_name(name: str) -> tuple[int | None, str]:
    """A weight's layer and its name in it, or None and its name."""
    found = _NUMBERED.fullmatch(name)
    return (int(found[1]), found[2]) if found else (None, name)


class HuggingFaceFolder:
    """A model folder as export or transformers writes it.

    Attributes:
        config: what `config.json` says.
        record: of a folder that export wrote, what its manifest says; else None.

    Raises:
        UserError: it is of another architecture, or files are missing.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._safetensors = require("safetensors", extra="eval", purpose="weights of a Hugging Face folder")
        self.config = FolderConfig(folder)
        self.record = _read_record(folder)
        self._files = self._list_files()
        if (remainders := folder / gemma3.REMAINDERS).is_file():
            self._remainders = self._names_in(remainders)
        else:
            self._remainders = {}
        self._open: dict[Path, Any] = {}

    def verify(self) -> None:
        """Compare the files that export wrote with its manifest; of other folders nothing is known.

        Raises:
            UserError: naming the first file that is not what was written.
        """
        # Cards and code are not read here, and people edit cards.
        _verify(self.folder, self.record, lambda name: not name.endswith((".md", ".py")))

    def model(self) -> ModelConfig:
        """The network of the folder, as a configuration of ours.

        Raises:
            UserError: no configuration of ours describes it.
        """
        return self.config.model(self.record.export.model if self.record else {})

    def compare(self, model: ModelConfig) -> list[str]:
        """What a network has that the folder's has not, or computes otherwise.

        Raises:
            UserError: shapes differ, or the folder uses what this network cannot do.
        """
        return self.config.compare(model)

    def weight(self, name: str) -> torch.Tensor:
        """A weight by its name in the folder, whole.

        Raises:
            UserError: it is missing, or its file is damaged.
        """
        if name not in self._files:
            raise UserError(f"{self.folder}: holds no weight {name!r}")
        return self._read(self._files[name], name)

    def megatron_weight(self, name: str, model: ModelConfig) -> torch.Tensor | None:
        """A weight by its name in megatron-core, layers numbered over the network; None: the folder has no such."""
        like = model.model_copy(update=self.config.switches)
        index, inner = numbered_name(name)
        weights = outer_weights(like) if index is None else layer_weights(like)
        known = {weight.name: weight for weight in weights}
        if inner not in known:
            return None
        prefix = "" if index is None else f"model.layers.{index}."
        theirs = known[inner].huggingface
        if inner == HEAD and theirs[0] not in self._files and self.config.tied:
            theirs = known[EMBEDDING].huggingface
        parts = {part: self._ours(prefix + part, inner, model) for part in theirs}
        if inner == QKV:
            return names.join_qkv(parts, model)
        return names.join_gate_and_up(parts) if inner == GATE_AND_UP else parts[theirs[0]]

    def megatron_names(self, model: ModelConfig) -> list[str]:
        """Names of all weights of the network, layers numbered."""
        layers = [
            f"{LAYERS}{index}.{weight.name}" for index in range(model.num_layers) for weight in layer_weights(model)
        ]
        return [*(weight.name for weight in outer_weights(model)), *layers]

    def _ours(self, name: str, inner: str, model: ModelConfig) -> torch.Tensor:
        """The numbers that were exported, in the precision that they had, where that is known."""
        found = self.weight(name)
        if self.config.kind == "gemma3" and (found.ndim == 1 or inner == EMBEDDING):
            return self._from_gemma3(name, found, model)
        before = self._dtype_before()
        return found.to(before) if before and torch.equal(found.to(before).to(found.dtype), found) else found

    def _from_gemma3(self, name: str, found: torch.Tensor, model: ModelConfig) -> torch.Tensor:
        back = gemma3.restored(found, model).to(self._dtype_before() or torch.float32)
        if name not in self._remainders:
            return back
        distance = self._read(self._remainders[name], name)
        if distance.shape != back.shape or distance.dtype not in (torch.int8, torch.int32):
            raise UserError(f"{self._remainders[name]}: {name!r} does not fit the weight; {_REMEDY}")
        return gemma3.add_remainder(back, distance)

    def _dtype_before(self) -> torch.dtype | None:
        return _DTYPES.get(self.record.export.of_dtype) if self.record else None

    def _list_files(self) -> dict[str, Path]:
        """Weight names and the files that hold them."""
        path = self.folder / _INDEX
        if not path.is_file():
            path = self.folder / _SINGLE
            if not path.is_file():
                raise UserError(f"{self.folder}: neither {_SINGLE} nor {_INDEX} is there; pickles are not read")
            return self._names_in(path)
        weights = require_form(path, read_json(path, "index of the weights"), _Index, _REMEDY).weight_map
        if any("/" in file for file in weights.values()):
            raise UserError(f"{path}: has no weight_map of files in this folder")
        for file in sorted(set(weights.values())):
            if not os.path.isfile(self.folder / file):  # a name that is too long is none either
                raise UserError(f"{self.folder}: {excerpt(file)} is missing, though {_INDEX} names it; {_REMEDY}")
        return {name: self.folder / file for name, file in weights.items()}

    def _names_in(self, path: Path) -> dict[str, Path]:
        try:
            with self._safetensors.safe_open(str(path), framework="pt") as weights:
                return {name: path for name in weights.keys()}  # noqa: SIM118 - a handle, not a mapping
        except (self._safetensors.SafetensorError, OSError) as error:
            raise UserError(f"{path}: cannot be read ({excerpt(error)}); {_REMEDY}") from error

    def _read(self, path: Path, name: str) -> torch.Tensor:
        try:
            if path not in self._open:
                self._open[path] = self._safetensors.safe_open(str(path), framework="pt")
            tensor: torch.Tensor = self._open[path].get_tensor(name)
            return tensor
        except (self._safetensors.SafetensorError, OSError) as error:
            raise UserError(f"{path}: cannot be read ({excerpt(error)}); {_REMEDY}") from error


def verify_weights(folder: Path) -> None:
    """Compare the files of weights with the manifest, in a folder that export wrote.

    Raises:
        UserError: naming the first file that is not what was written.
    """
    _verify(folder, _read_record(folder), lambda name: name.endswith(".safetensors"))


def _verify(folder: Path, record: ExportRecord | None, is_wanted: Callable[[str], bool]) -> None:
    for name, entry in record.files.items() if record else ():
        path = folder / name
        if not is_wanted(name):
            continue
        if not os.path.isfile(path):
            raise UserError(f"{folder}: {excerpt(name)} is missing, though {RECORD} lists it; {_REMEDY}")
        if path.stat().st_size != entry.bytes or checksum(path) != entry.checksum:
            raise UserError(f"{path}: is not the file that was exported (its checksum differs); {_REMEDY}")


def _read_record(folder: Path) -> ExportRecord | None:
    """The manifest of a folder that export wrote; None: another one has no such, or one of its own."""
    path = folder / RECORD
    if not path.is_file():
        return None
    content = read_json(path, "manifest")
    if not isinstance(content, dict) or content.get("format") != EXPORT_FORMAT:
        return None
    sealed = read_sealed_json(path, "manifest")
    # Before folders had several formats their manifest named files only.
    return require_form(path, sealed, ExportRecord, _REMEDY) if "export" in sealed else None
