"""What transformers 4 reads under other names than transformers 5 writes. An exported folder holds both.

transformers 4 passes over names that it does not know and takes its own default, without a message: the rotary base of
a folder that only transformers 5 wrote would be 10,000 or 1,000,000 there. transformers 5 prefers its own names, so
that the older ones beside them change nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_kaiyuan.files import read_json, write_json

# The class of a tokenizer.json, which transformers 5 has renamed; it still reads the older name.
_NEW_CLASS, _OLD_CLASS = "TokenizersBackend", "PreTrainedTokenizerFast"


def add_older_names(folder: Path) -> None:
    """Complete `config.json`, and `tokenizer_config.json` where there is one, of a folder that transformers 5 wrote."""
    path = folder / "config.json"
    config = read_json(path, "Hugging Face configuration")
    write_json(path, dict(sorted({**config, **_older_fields(config)}.items())))
    path = folder / "tokenizer_config.json"
    if path.is_file():
        write_json(path, _readable_by_both(read_json(path, "tokenizer configuration")))


def _older_fields(config: dict[str, Any]) -> dict[str, Any]:
    """The same values under the names of transformers 4: one rotary base, or one each for the kinds of attention."""
    # Before 4.56 the type has this name.
    fields: dict[str, Any] = {"torch_dtype": config["dtype"], "rope_scaling": None}
    if "auto_map" in config:  # the class in the folder has one name for each value
        return fields
    rope = config["rope_parameters"]
    if "rope_theta" in rope:
        return {**fields, "rope_theta": rope["rope_theta"]}
    return {
        **fields,
        "rope_theta": rope["full_attention"]["rope_theta"],
        "rope_local_base_freq": rope["sliding_attention"]["rope_theta"],
        # Before 4.53, where there is no layer_types: each layer attends to the whole context.
        "sliding_window_pattern": 1,
    }


def _readable_by_both(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer's configuration without what stops transformers 4: the new class, and a list of extra tokens.

    Code that the folder names does not come along, and so its name does not.
    """
    changed = {name: value for name, value in tokenizer.items() if name != "auto_map"}
    if changed.get("tokenizer_class") == _NEW_CLASS:
        changed["tokenizer_class"] = _OLD_CLASS
    if isinstance(changed.get("extra_special_tokens"), list):
        changed.setdefault("additional_special_tokens", changed.pop("extra_special_tokens"))
    return changed
