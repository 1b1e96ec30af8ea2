"""Python packages: do they load, and are they the tested ones?"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
from importlib.metadata import PackageNotFoundError, entry_points, requires, version

from packaging.requirements import Requirement

from megatron_kaiyuan.doctor.examination import Examination, in_one_line

_PROJECT = "megatron-kaiyuan"
# The extra in which setup.py keeps the pins of requirements.txt.
_TESTED = "tested"
_KERNELS = {
    "Transformer Engine": "transformer_engine",
    "Apex": "amp_C",  # the extension; PyPI's `apex` is an unrelated package
    "Liger": "liger_kernel",
    "FlashAttention": "flash_attn",
}


def examine_versions(found: Examination) -> None:
    """Compare what is installed with the ranges of setup.py and with the versions that are tested."""
    software = {"python": platform.python_version()}
    found.facts["software"] = software
    try:
        wanted = [Requirement(text) for text in requires(_PROJECT) or []]
    except PackageNotFoundError:
        found.note(f"software: {_PROJECT} is not installed as a package, so the tested versions are not known")
        return
    ranges = {one.name: one.specifier for one in wanted if one.marker is None}
    pins = {one.name: one.specifier for one in wanted if _is_pin(one)}
    for name in dict.fromkeys([*ranges, *pins]):
        try:
            software[name] = version(name)
        except PackageNotFoundError:
            if name in ranges:
                found.problem(f"software: {name} is not installed; pip install '{name}{ranges[name]}'")
            continue
        if name in ranges and not ranges[name].contains(software[name], prereleases=True):
            found.problem(
                f"software: {name} {software[name]} is outside {ranges[name]}; pip install '{name}{ranges[name]}'"
            )
        elif name in pins and not pins[name].contains(software[name], prereleases=True):
            found.note(f"software: {name} {software[name]} is not the tested {pins[name]}")


def examine_torch(found: Examination) -> bool:
    """Load torch, then the backends that other packages add to it; whether torch can be used.

    Torch loads them too, at its import, and fails as a whole when one of them does. So it is asked not to, for this
    process, and they are tried one by one.
    """
    os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    try:
        importlib.import_module("torch")
    except Exception as error:
        found.problem(f"torch: cannot be imported ({in_one_line(error)}); install it again")
        return False
    for backend in entry_points(group="torch.backends"):
        try:
            backend.load()()
        except Exception as error:
            found.problem(
                f"torch: the backend {backend.name!r} does not load ({in_one_line(error)}), so that a plain "
                "`import torch` fails; install its driver's libraries (Ascend: source CANN's set_env.sh), uninstall "
                "it, or export TORCH_DEVICE_BACKEND_AUTOLOAD=0"
            )
    return True


def examine_kernels(found: Examination) -> None:
    """Which optional kernel libraries can be found; none of them is needed."""
    found.facts["kernels"] = {name: importlib.util.find_spec(module) is not None for name, module in _KERNELS.items()}


def _is_pin(requirement: Requirement) -> bool:
    """Belongs to the extra [tested]."""
    marker = requirement.marker
    return marker is not None and marker.evaluate({"extra": _TESTED}) and not marker.evaluate({"extra": ""})
