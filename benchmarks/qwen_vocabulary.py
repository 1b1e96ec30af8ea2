"""The Qwen3 and cl100k vocabularies that the quicktok-v1 package ships, as files that other libraries read.

    python -m benchmarks.qwen_vocabulary FOLDER

writes a Hugging Face folder of the real Qwen3 tokenizer, without a network. quicktok stores a vocabulary as
little-endian records: a count, then for each token its size (u16), its bytes, and its rank (u32); special tokens as
a count, then id (u32), size (u16), text.
"""

from __future__ import annotations

import argparse
import base64
import importlib.util
import json
import struct
from pathlib import Path
from typing import Any

from data_tools.tokenizers.tiktoken_files import KNOWN

Ranks = dict[bytes, int]


def ranks(name: str) -> Ranks:
    """Ranks of `qwen3` or `cl100k`, by token."""
    content = (_folder() / f"{name}.vocab").read_bytes()
    (count,) = struct.unpack_from("<I", content)
    at, found = 4, {}
    for _ in range(count):
        (size,) = struct.unpack_from("<H", content, at)
        token = content[at + 2 : at + 2 + size]
        (found[token],) = struct.unpack_from("<I", content, at + 2 + size)
        at += size + 6
    return found


def special_tokens(name: str) -> dict[str, int]:
    """Ids of the special tokens, by token."""
    content = (_folder() / f"{name}.special").read_bytes()
    (count,) = struct.unpack_from("<I", content)
    at, found = 4, {}
    for _ in range(count):
        token_id, size = struct.unpack_from("<IH", content, at)
        found[content[at + 6 : at + 6 + size].decode()] = token_id
        at += size + 6
    return found


def write_tiktoken(name: str, path: Path) -> None:
    """The rank file, byte for byte as its publisher's."""
    in_order = sorted(ranks(name).items(), key=lambda item: item[1])
    path.write_bytes(b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in in_order))


def write_qwen(folder: Path) -> Path:
    """tokenizer.json and tokenizer_config.json of Qwen3; gives the path of the first."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(_tokenizer_json(), ensure_ascii=False), encoding="utf-8")
    configuration = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(configuration), encoding="utf-8")
    return path


def _tokenizer_json() -> dict[str, Any]:
    of_qwen = ranks("qwen3")
    names = {token: "".join(map(_character, token)) for token in of_qwen}
    merges = [[names[part] for part in _parts(token, of_qwen)] for token in of_qwen if len(token) > 1]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": KNOWN["qwen"].pattern}, "behavior": "Isolated", "invert": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            # Qwen calls <think>, <tool_call> and their like added tokens, not special ones.
            {"id": token_id, "content": token, **flags, "special": token.startswith("<|")}
            for token, token_id in special_tokens("qwen3").items()
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {names[token]: rank for token, rank in of_qwen.items()}, "merges": merges},
    }


def _parts(token: bytes, of: Ranks) -> list[bytes]:
    """The two tokens that were merged into this one: what is left of its bytes when lower ranks are merged first."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        _, at = min((of.get(parts[i] + parts[i + 1], len(of)), i) for i in range(len(parts) - 1))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def _character(byte: int) -> str:
    """The byte-level alphabet: printable bytes of Latin-1 stand for themselves, the others come after 255."""
    hidden = [*range(0x21), *range(0x7F, 0xA1), 0xAD]
    return chr(256 + hidden.index(byte)) if byte in hidden else chr(byte)


def _folder() -> Path:
    package = importlib.util.find_spec("quicktok")
    if package is None or package.origin is None:
        raise SystemExit("install quicktok-v1, whose vocabularies these are")
    return Path(package.origin).parent / "data"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    print(write_qwen(parser.parse_args().folder))
