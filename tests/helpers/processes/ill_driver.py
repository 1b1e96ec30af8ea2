"""A driver that reports an ill device, where there is none."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.processes.launched import ROOT

_LOG = ROOT / "tests" / "doctor" / "driver_output" / "nvidia_smi_l4.xml"


def ill_driver(folder: Path, only_on: str = "") -> Path:
    """Write an nvidia-smi for the beginning of PATH, and return the folder.

    Args:
        only_on: the node of Slurm on which the device is ill; on others the same one is healthy.
    """
    folder.mkdir()
    healthy, log = "<remapped_row_failure>No", _LOG.read_text()
    assert healthy in log
    (folder / "healthy.xml").write_text(log)
    (folder / "ill.xml").write_text(log.replace(healthy, "<remapped_row_failure>Yes"))
    elsewhere = f'[ "$SLURMD_NODENAME" = {only_on} ] || log=healthy\n' if only_on else ""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nlog=ill\n{elsewhere}[ $1 != -q ] || cat {folder}/$log.xml\n")
    program.chmod(0o755)
    return folder
