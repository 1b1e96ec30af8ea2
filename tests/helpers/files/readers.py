"""The sources, and what in them makes objects of bytes."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
# What the page calls a reader, and how the source calls it.
READERS = {
    "json": r"(?<![\w.])json\.loads?\(|\.model_validate_json\(",
    "orjson": r"\borjson\.loads\(",
    "OmegaConf": r"\bOmegaConf\.(load|create)\(|\.merge_with_dotlist\(",
    "yaml.safe_load": r"\byaml\.safe_load\(",
    "pickle.Unpickler": r"\bpickle\.Unpickler\b",
    "torch.load": r"\btorch\.load\(",
    "dist_checkpointing": r"\bdist_checkpointing\.load\w*\(",
    "map_file": r"(?<!def )\bmap_file\(",
    "np.memmap": r"\bnp\.memmap\(",
    "np.fromfile": r"\bnp\.fromfile\(",
    "pyarrow.parquet": r"\bpq\.(ParquetFile|read_\w+)\(",
    "safetensors": r"\.safe_open\(",
    "transformers": r"\.from_pretrained\(",
    "tokenizers": r"(?<!library\.)\bTokenizer\.from_\w+\(",
    "sentencepiece": r"\.LoadFromSerializedProto\(",
    "fastText": r"\bLinearModel\(",
    "kenlm": r"\bkenlm\.Model\(",
    "tiktoken": r"\btiktoken\.Encoding\(",
    "gigatoken": r"\blibrary\.Tokenizer\.from_\w+\(",
    "tarfile": r"\btarfile\.open\([^\n]*mode=\"r",
    "ast.parse": r"\bast\.parse\(",
}


def sources() -> dict[str, str]:
    """Source files by their place."""
    files = [path for package in ("megatron_kaiyuan", "data_tools") for path in sorted((ROOT / package).rglob("*.py"))]
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in files}
