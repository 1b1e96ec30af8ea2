"""Folders with the files of a checkpoint, small and of no meaning."""

from __future__ import annotations

from pathlib import Path

from megatron_kaiyuan.checkpoint import layout

FILES = (".metadata", "common.pt", "metadata.json", "__0_0.distcp", "__1_0.distcp")


def make_step(run_dir: Path, step: int, content: bytes = b"some bytes") -> Path:
    """A whole checkpoint by its manifest: `content` in the first shard."""
    folder = layout.step_folder(run_dir, step)
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).write_bytes(f"{name} of step {step}".encode())
    (folder / "__0_0.distcp").write_bytes(content)
    layout.write_manifest(folder)
    return folder
