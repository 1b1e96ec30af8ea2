"""What a driver's own tool knows of its devices: memory errors, links, resets that are due. Needs no torch.

Read from `nvidia-smi -q -x`, the kernel's log (Xid), `npu-smi info` and `npu-smi info -t ecc`. Meanings: NVIDIA's
manual page of nvidia-smi, its GPU Debug Guidelines and its catalogue of Xid errors; Huawei's reference of npu-smi.
Tested on recorded outputs; never run beside a device that is ill.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from xml.etree import ElementTree

from megatron_kaiyuan.doctor.examination import Examination

# Each tool answers within two seconds on eight devices; one that hangs is a finding of its own.
_SECONDS = 15.0
_LIMITS = {"reset_required": "No", "gpu_recovery_action": "None", "pending_retirement": "No"}
_LIMITS |= {"remapped_row_pending": "No", "remapped_row_failure": "No", "sram_threshold_exceeded": "No"}
_LIMITS |= {"route_unhealthy": "No", "bandwidth": "Full"}
_SLOWDOWNS = ("hw_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown")
_UNKNOWN = ("N/A", "Requested functionality has been deprecated", "Not Supported", "")
# Errors of the device or its links, not of programs.
_XID = {
    48: "a double-bit memory error",
    64: "a row of memory that could not be remapped",
    74: "an NVLink error",
    79: "the GPU has fallen off the bus",
    95: "an uncontained memory error",
    119: "its firmware does not answer",
    120: "its firmware has failed",
    140: "an unrecovered memory error",
}
_XID_LINE = re.compile(r"^\[\s*(\d+\.\d+)\].*NVRM: Xid \(PCI:([0-9a-fA-F:.]+)\): (\d+)", re.MULTILINE)
_XID_SECONDS = 24 * 3600.0
_NPU_ROW = re.compile(r"^\|\s*(\d+)\s+(\S+)\s*\|\s*(\w+)\s*\|", re.MULTILINE)
_NPU_ERRORS = re.compile(r"^\s*(\w+ Double Bit (?:Error|Next-Isolated Pages) Count)\s*:\s*([1-9]\d*)", re.MULTILINE)


def examine_health(found: Examination) -> None:
    """Ask the tools that this node has; what they report is a problem of the node."""
    problems: list[str] = []
    if shutil.which("nvidia-smi"):
        problems += _asked(["nvidia-smi", "-q", "-x"], nvidia_problems)
        problems += _xid_problems()
    if shutil.which("npu-smi"):
        problems += _asked(["npu-smi", "info"], npu_problems)
        with ThreadPoolExecutor() as pool:
            commands = [["npu-smi", "info", "-t", "ecc", "-i", number] for number in _npu_numbers()]
            for ecc in pool.map(lambda command: _asked(command, npu_ecc_problems), commands):
                problems += ecc
    for problem in problems:
        found.problem(f"health: {problem}", of_node=True)


def nvidia_problems(text: str) -> Iterator[str]:
    """Yield what `nvidia-smi -q -x` reports of each GPU that is not in order."""
    try:
        log = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        yield f"nvidia-smi -q -x prints no XML ({error})"
        return
    for gpu in log.iter("gpu"):
        name = f"GPU {gpu.get('id')} ({gpu.findtext('product_name')})"
        for field, right in _LIMITS.items():
            for place in gpu.iter(field):
                value = (place.text or "").strip()
                if value not in (right, *_UNKNOWN):
                    yield f"{name}: {field} is {value}; reset the GPU, or have it replaced"
        errors = sum(_count(one.text) for one in gpu.iterfind("ecc_errors/volatile/*") if "uncorrectable" in one.tag)
        errors += _count(gpu.findtext("ecc_errors/volatile/double_bit/total"))
        if errors:
            yield f"{name}: {errors} uncorrectable memory errors since its driver was loaded; reset the GPU"
        widths = [gpu.findtext(f".//link_widths/{kind}_link_width", "") for kind in ("current", "max")]
        if all(re.fullmatch(r"\d+x", width) for width in widths) and _count(widths[0][:-1]) < _count(widths[1][:-1]):
            yield f"{name}: its PCIe link has {widths[0]} lanes of {widths[1]}; reseat the card"
        active = [kind for kind in _SLOWDOWNS if gpu.findtext(f".//clocks_event_reason_{kind}") == "Active"]
        if active:
            yield f"{name}: slowed down by the hardware ({', '.join(active)}); look at its cooling and its power"
        if gpu.findtext("fabric/state") not in ("Completed", None, *_UNKNOWN):
            yield f"{name}: NVLink fabric is {gpu.findtext('fabric/state')}; start the fabric manager"


def xid_problems(log: str, uptime: float) -> Iterator[str]:
    """Yield the errors of devices in a kernel's log of the last day, each kind once a GPU.

    Args:
        log: lines of `dmesg`, with seconds since boot.
        uptime: seconds since boot.
    """
    seen: dict[tuple[str, int], int] = {}
    for seconds, device, number in _XID_LINE.findall(log):
        if int(number) in _XID and uptime - float(seconds) < _XID_SECONDS:
            seen[device, int(number)] = seen.get((device, int(number)), 0) + 1
    for (device, number), count in seen.items():
        yield f"GPU {device}: Xid {number} {count} times within a day, {_XID[number]}; reset or replace it"


def npu_problems(text: str) -> Iterator[str]:
    """Yield the NPUs that `npu-smi info` does not call healthy."""
    for number, name, health in _NPU_ROW.findall(text):
        if health not in ("OK", "Warning"):
            yield f"NPU {number} ({name}): health is {health}; see npu-smi info -t health -i {number} -c 0"


def npu_ecc_problems(text: str) -> Iterator[str]:
    """Yield memory errors that `npu-smi info -t ecc -i N` counts and does not correct."""
    number = re.search(r"NPU ID\s*:\s*(\d+)", text)
    for what, count in _NPU_ERRORS.findall(text):
        yield f"NPU {number[1] if number else '?'}: {what} is {count}; reset the NPU, or have it replaced"


def _asked(command: Sequence[str], read: Callable[[str], Iterable[str]]) -> list[str]:
    name = " ".join(command)
    try:
        done = _run(command)
    except subprocess.TimeoutExpired:
        return [f"{name} did not answer within {_SECONDS:g} s: a device or its driver hangs"]
    except OSError as error:
        return [f"{name} cannot be run ({error.strerror})"]
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()
        return [f"{name} ended with exit code {done.returncode} ({said[-1][:200] if said else 'no output'})"]
    return list(read(done.stdout))


def _xid_problems() -> list[str]:
    """The kernel's log is often for root alone: then it has nothing to report."""
    try:
        log = _run(["dmesg"]).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return list(xid_problems(log, time.clock_gettime(time.CLOCK_BOOTTIME)))


def _npu_numbers() -> list[str]:
    try:
        table = _run(["npu-smi", "info"]).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [number for number, _, _ in _NPU_ROW.findall(table)]


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, errors="replace", check=False)


def _count(text: str | None) -> int:
    return int(text) if text is not None and text.strip().isdigit() else 0
