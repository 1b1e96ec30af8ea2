"""A driver that reports an ill device, where there is none."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.processes.launched import ROOT

_LOG = ROOT / "tests" / "doctor" / "driver_output" / "nvidia_smi_l4.xml"


def ill_driver(folder: Path, only_on: str = "") -> Path:
    """Write an nvidia-smi for the beginning of PATH, and return the folder.

    Args:
        only_on: the node of Slurm on which the device is ill; elsewhere no driver answers.
    """
    folder.mkdir()
    healthy = "<remapped_row_failure>No"
    log = _LOG.read_text()
    assert healthy in log
    (folder / "log.xml").write_text(log.replace(healthy, "<remapped_row_failure>Yes"))
    other = f'[ "$SLURMD_NODENAME" = {only_on} ] || exit 127\n' if only_on else ""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{other}[ $1 != -q ] || cat {folder}/log.xml\n")
    program.chmod(0o755)
    return folder
