"""Builds what torch_npu is linked against: C stubs of CANN and HCCL (`cann/`), whose device is the host.

Of CANN's functions the stubs define those that have to answer something. The wheel's libraries themselves say which
others they ask for; these return 0, which is success.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import re
import subprocess
from pathlib import Path

from megatron_kaiyuan.files import atomic_path
from megatron_kaiyuan.locks import lock
from tests.helpers.ascend import wheel

_SOURCES = Path(__file__).with_name("cann")
LIBRARY = "libascendcl.so"
# CANN has functions in these too. Here each depends on the one library that has them all.
OTHERS = (
    "libacl_op_compiler.so", "libacl_tdt_channel.so", "libge_runner.so", "libgraph.so", "libhccl.so", "libopapi.so",
)  # fmt: skip
_CANN_NAME = re.compile(r"(acl|rt[A-Z]|Msprof|Hccl)\w+")
_NEWER_OPERATOR = re.compile(rb"\x00aclnn([A-Z]\w*)(?=\x00)")
# Functions that are looked up by name, of those that have nothing to answer.
_LOOKED_UP = re.compile(rb"\x00(acl(?:rt|mdl|op|prof)?(?:Set|Reset|Destroy|Synchronize)[A-Z]\w*)(?=\x00)")
_FLAGS = ["-shared", "-fPIC", "-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-pthread", "-Wl,--no-as-needed"]


@functools.cache
def built() -> Path:
    """The folder of the built libraries.

    Raises:
        RuntimeError: the C compiler failed, with what it printed.
    """
    package = wheel.unpacked()
    sources = b"".join(path.read_bytes() for path in [*sorted(_SOURCES.iterdir()), Path(__file__)])
    folder = wheel.cache() / f"stubs-{package.name}-{hashlib.sha256(sources).hexdigest()[:16]}"
    if not folder.exists():
        with lock(folder.with_name(f"{folder.name}.lock"), seconds=600):
            if not folder.exists():
                with atomic_path(folder) as temporary:
                    _build(temporary, package / "torch_npu")
    return folder


def cann_environment() -> dict[str, str]:
    """What CANN's set_env.sh would set, of what torch_npu asks for."""
    folder = str(built())
    return {"LD_LIBRARY_PATH": folder, "ASCEND_HOME_PATH": folder, "ASCEND_OPP_PATH": folder}


def load() -> None:
    """Load the libraries into this process; it finds them by name from then on, whatever LD_LIBRARY_PATH was."""
    for library in (LIBRARY, *OTHERS):
        ctypes.CDLL(str(built() / library), ctypes.RTLD_GLOBAL)


def _build(folder: Path, package: Path) -> None:
    for name in (".", "runtime", "compiler"):
        # torch_npu looks for the latter two.
        (folder / name).mkdir()
    (folder / "ascend_toolkit_install.info").write_text("version=9.1.0\n")
    libraries = [*package.glob("lib/*.so"), *package.glob("_C*.so")]
    asked = {name for name in _symbols("--undefined-only", *libraries) if _CANN_NAME.fullmatch(name)}
    content = (package / "lib" / "libtorch_npu.so").read_bytes()
    asked |= {name.decode() for name in _LOOKED_UP.findall(content)}
    operators = sorted({name.decode().removesuffix("GetWorkspaceSize") for name in _NEWER_OPERATOR.findall(content)})
    sources = sorted(_SOURCES.glob("*.c"))
    _compile(folder / LIBRARY, *sources)
    missing = sorted(asked - _symbols("--defined-only", folder / LIBRARY))
    generated = folder / "generated.c"
    generated.write_text(
        "int stub_newer_operator(const char *name);\n"
        + "".join(f"int {name}(void) {{ return 0; }}\n" for name in missing)
        + "".join(map(_newer_operator, operators))
    )
    _compile(folder / LIBRARY, *sources, generated)
    for other in OTHERS:
        _compile(folder / other, folder / LIBRARY)


def _newer_operator(name: str) -> str:
    """A pair of functions: the first one checks, the second one launches."""
    check = f'int aclnn{name}GetWorkspaceSize(void) {{ return stub_newer_operator("{name}"); }}\n'
    return f"{check}int aclnn{name}(void) {{ return 0; }}\n"


def _compile(library: Path, *sources: Path) -> None:
    command: list[str | Path] = ["cc", *_FLAGS, f"-Wl,-soname,{library.name}", "-o", library, *sources]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{library.name} does not compile: {done.stderr[-2000:]}")


def _symbols(which: str, *libraries: Path) -> set[str]:
    listed = subprocess.run(["nm", "-D", which, *libraries], capture_output=True, text=True, check=True).stdout
    return {line.split()[-1] for line in listed.splitlines() if len(line.split()) > 1}
