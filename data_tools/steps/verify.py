"""Checking a folder of documents against its manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_tools.steps.folder import read_documents_manifest, require_files
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import checksum
from megatron_kaiyuan.outputs import RECORD, unlisted


@dataclass(frozen=True)
class VerifiedDocuments:
    """What a folder of documents holds that was found to be whole."""

    folder: Path
    documents: int


def verify_documents(folder: Path, fast: bool = False) -> VerifiedDocuments:
    """Compare every file with its size and, unless `fast`, its checksum.

    Raises:
        UserError: the first thing that is wrong.
    """
    manifest = read_documents_manifest(folder)
    require_files(folder, manifest["files"])
    if extra := unlisted(folder, manifest["files"]):
        raise UserError(f"{folder / extra[0]}: is not listed in {RECORD}; remove it, or make the folder again")
    for name, about in manifest["files"].items():
        if not fast and (found := checksum(folder / name)) != about["checksum"]:
            raise UserError(f"{folder / name}: damaged, its checksum is {found}; make the folder again")
    return VerifiedDocuments(folder, sum(counts["documents"] for counts in manifest["datasets"].values()))
