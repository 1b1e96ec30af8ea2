#!/usr/bin/env bash
# Makes the project's virtual environment, or brings it to the pinned versions; `source launch/setup_env.sh` does this and
# puts it on PATH.
#   bash launch/make_env.sh [--dev]                 --dev: what the tests and the checks of style need, too
#   bash launch/make_env.sh --wheels DIR [--dev]    only fetch or build all wheels, for a machine without a network
# KAIYUAN_VENV  where the environment is (default: .venv in the project). Where the project's folder cannot be written, it
#               is needed, and a copy of the project is installed there
# KAIYUAN_NPU   1: requirements-npu.txt too, torch_npu and a torch without CUDA; 0: not (default: where there is an NPU)
# PYTHON        the interpreter that makes it (default: the first of python3.11, python3.12, ... that fits)
# CXX           the compiler of the extensions
# pip's own settings (PIP_INDEX_URL, PIP_NO_INDEX, PIP_FIND_LINKS, ...) are respected; docs/setup.md says how to do without a
# network. Needs no root, no terminal and no HOME. Nothing is ever deleted; what is in the way is named, and moved
# only if this script made it.
set -uo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." >/dev/null && pwd)"
venv="${KAIYUAN_VENV:-$root/.venv}"
[[ $venv == /* ]] || venv="$PWD/$venv"
stamp="$venv/kaiyuan.stamp" made="$venv/kaiyuan.made" log="$venv/setup.log"
inner_lock="$venv/kaiyuan.lock"

fail() {
    echo "error: set-up: $*" >&2
    exit 1
}

[[ $(uname -s) == Linux ]] || fail "this project runs on Linux only, and this is $(uname -s)"
wheels=''
if [[ ${1:-} == --wheels ]]; then
    [[ -n ${2:-} && ${2:-} != -* ]] || fail "--wheels needs a folder to write the wheels to"
    wheels="$2"
    shift 2
fi
case "$*" in
    '') files=(requirements.txt requirements-build.txt) ;;
    --dev) files=(requirements.txt requirements-build.txt requirements-dev.txt) ;;
    *) fail "unknown arguments '$*'; there are --wheels DIR and --dev" ;;
esac
has_npu() {
    [[ ${KAIYUAN_NPU:-$(find /dev -maxdepth 1 -name 'davinci[0-9]*' | wc -l)} != 0 ]]
}
# First, because it says where torch comes from.
! has_npu || files=(requirements-npu.txt "${files[@]}")

# What the installed project depends on besides the pins. Where the folder can be written, the installation points into
# it: its path counts, and Python's files do not. Else a copy was installed, and they do.
fingerprint() { # editable | copy
    (
        cd "$root" && pwd && cksum setup.py pyproject.toml requirements-build.txt || exit
        find csrc -type f | LC_ALL=C sort | xargs cksum
        [[ $1 == editable ]] || find megatron_kaiyuan data_tools -name '*.py' | LC_ALL=C sort | xargs cksum
    ) | cksum
}

# What is wrong in the environment, a line each.
check_environment() {
    (cd "$root" && "$venv/bin/python" -I launch/check_env.py "$@" "${files[@]}")
}

is_project_installed() {
    local mode cksum
    [[ -f $stamp ]] && read -r mode cksum <"$stamp" && [[ $cksum == "$(fingerprint "$mode")" ]]
}

is_complete() {
    is_project_installed && check_environment >/dev/null 2>&1
}

is_supported() { # INTERPRETER
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    local candidate
    if [[ -n ${PYTHON:-} ]]; then
        is_supported "$PYTHON" || fail "PYTHON=$PYTHON is not a Python 3.11 or newer, which requirements.txt needs"
        echo "$PYTHON"
        return
    fi
    for candidate in python3.11 python3.12 python3.13 python3 python; do
        if is_supported "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    fail "no Python 3.11 or newer on PATH, which requirements.txt needs: install one or set PYTHON=/path/to/python3"
}

# Version and place of the Python that an interpreter, or an environment's, is.
describe_python() { # INTERPRETER
    "$1" -I -c 'import os, sys; print(sys.version.split()[0], "of", os.path.realpath(sys.base_prefix))'
}

check_place() {
    local parent="$venv"
    until [[ -e $parent ]]; do parent="$(dirname "$parent")"; done
    [[ -d $parent ]] || fail "$parent is not a folder: set KAIYUAN_VENV to another place"
    [[ -w $parent ]] || fail "$parent cannot be written: set KAIYUAN_VENV to a folder where the environment may be made"
    if [[ -n $(ls -A "$venv" 2>/dev/null) && ! -f $venv/pyvenv.cfg && ! -f $made && ! -f $inner_lock ]]; then
        fail "$venv is not empty and not a virtual environment: set KAIYUAN_VENV to another place"
    fi
}

# An interpreter that was removed leaves an environment that nothing can run. It may be back, or be seen from another
# machine, so that the environment is kept.
move_away_without_interpreter() {
    [[ -L $venv/bin/python || -e $venv/bin/python ]] && ! "$venv/bin/python" -c '' 2>/dev/null || return 0
    local other
    other="$venv.without-interpreter-$(date +%Y%m%dT%H%M%S)"
    [[ -f $made ]] ||
        fail "$venv/bin/python does not run (it was $(readlink -m "$venv/bin/python")), and this script did not make" \
            "the environment: move $venv away, or set KAIYUAN_VENV to another place"
    mv "$venv" "$other" || fail "$venv/bin/python does not run, and $venv cannot be moved away"
    echo "set-up: the interpreter of $venv is gone; it is $other now, and may be removed"
}

# An environment keeps the interpreter that it was made with.
check_interpreter() {
    local own asked
    "$venv/bin/python" -c '' 2>/dev/null || return 0
    is_supported "$venv/bin/python" || fail "$venv has a Python older than 3.11: set KAIYUAN_VENV to another place"
    [[ -n ${PYTHON:-} ]] || return 0
    own="$(describe_python "$venv/bin/python")" asked="$(describe_python "$PYTHON")"
    [[ $own == "$asked" ]] ||
        fail "$venv has Python $own, and PYTHON=$PYTHON is Python $asked: set KAIYUAN_VENV to another place, move $venv" \
            "away, or unset PYTHON"
}

make_venv() { # INTERPRETER
    ! "$venv/bin/python" -c 'import pip' 2>/dev/null || return 0
    "$1" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$1 cannot make virtual environments: install python3-venv, or set PYTHON"
    if ! { mkdir -p "$venv" && echo "by launch/make_env.sh with $1" >"$made"; }; then fail "$venv cannot be written"; fi
    echo "set-up: making $venv with $1"
    "$1" -m venv "$venv" >>"$log" 2>&1 || fail_with_log
}

check_compiler() {
    local words
    "$venv/bin/python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
        fail "$("$venv/bin/python" -c 'import sys; print(sys.base_prefix)') has no Python.h, which the C++ extensions" \
            "need: install python3-dev, or set PYTHON"
    if [[ -n ${CXX:-} ]]; then
        read -ra words <<<"$CXX"
        command -v "${words[0]}" >/dev/null || fail "CXX=$CXX: there is no such compiler; set another, or unset CXX"
    else
        command -v c++ g++ clang++ >/dev/null ||
            fail "no C++ compiler, which the extensions need: install g++ or clang++, or set CXX"
    fi
}

fail_with_log() {
    tail -n 20 "$log" >&2
    fail "installation failed; the lines above are the end of $log"
}

pip_install() {
    "$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off --no-compile "$@" >>"$log" 2>&1 ||
        fail_with_log
}

install_packages() {
    local file broken arguments=()
    # Alone, because that index knows few packages.
    ! has_npu || pip_install -r "$root/requirements-npu.txt"
    for file in "${files[@]#requirements-npu.txt}"; do [[ -z $file ]] || arguments+=(-r "$root/$file"); done
    pip_install "${arguments[@]}"
    # Packages of which pip knows and whose files are gone.
    mapfile -t broken < <(check_environment --broken)
    ((${#broken[@]} == 0)) || pip_install --force-reinstall --no-deps "${broken[@]}"
}

# Built where nothing but the sources is, and never in a folder that cannot be written.
install_copy() {
    copy="$(mktemp -d)" || fail "no temporary folder can be made: set TMPDIR"
    trap 'rm -rf "$copy"' EXIT
    cd "$root" || exit 1
    cp -r --no-preserve=mode csrc data_tools docs launch megatron_kaiyuan ./*.* LICENSE "$copy" ||
        fail "the project could not be copied to $copy"
    find "$copy" -name '*.so' -delete
    pip_install --no-build-isolation --force-reinstall --no-deps "$copy"
}

install_project() {
    local mode=editable
    rm -f "$stamp"
    if [[ -w $root ]]; then
        pip_install --no-build-isolation -e "$root"
    else
        mode=copy
        (install_copy) || exit 1
    fi
    echo "$mode $(fingerprint "$mode")" >"$stamp"
}

# Runs while it holds the lock, so that two that start together do not install over each other.
set_up() {
    local python problems
    if is_complete; then
        echo "set-up: reused $venv"
        return
    fi
    move_away_without_interpreter
    python="$(find_python)" || exit 1
    make_venv "$python"
    is_project_installed || check_compiler
    # What is wrong is news where a set-up had ended well.
    [[ ! -f $stamp ]] || check_environment | while read -r problem; do echo "set-up: $problem"; done
    echo "set-up: installing into $venv (some minutes; log: $log)"
    install_packages
    if ! is_complete; then install_project; fi
    problems="$(check_environment 2>&1)" || fail "installed, and still: ${problems//$'\n'/; } (log: $log)"
    # On all cores; pip would do it on one. Files that are not for this version of Python do not count as errors.
    "$venv/bin/python" -m compileall -qq -j 0 "$venv/lib" >>"$log" 2>&1 || true
    echo "set-up: ready in $SECONDS s"
}

# All that an installation on a machine of the same kind asks for, in one folder; what is there already is kept.
make_wheels() {
    local python file
    python="$(find_python)" || exit 1
    mkdir -p "$wheels" || fail "$wheels cannot be written"
    wheels="$(cd "$wheels" && pwd)" log="$wheels/setup.log"
    work="$(mktemp -d)" || fail "no temporary folder can be made: set TMPDIR"
    trap 'rm -rf "$work"' EXIT
    echo "set-up: wheels for $(describe_python "$python") into $wheels (some minutes; log: $log)"
    # In an environment of its own: the interpreter may have no pip.
    "$python" -m venv "$work/venv" >>"$log" 2>&1 || fail_with_log
    for file in "${files[@]}"; do
        # `wheel`, not `download`: some packages come as sources only.
        "$work/venv/bin/python" -m pip wheel --disable-pip-version-check --progress-bar off --find-links "$wheels" \
            --wheel-dir "$wheels" -r "$root/$file" >>"$log" 2>&1 || fail_with_log
    done
    echo "set-up: $(find "$wheels" -name '*.whl' | wc -l) wheels, $(du -sh "$wheels" | cut -f1), in $wheels. Copy it, and there:"
    echo "PIP_NO_INDEX=1 PIP_FIND_LINKS=/path/to/$(basename "$wheels") source launch/setup_env.sh${*:+ $*}"
}

[[ -z ${PYTHON:-} ]] || find_python >/dev/null || exit 1
if [[ -n $wheels ]]; then
    make_wheels "$@"
    exit
fi
check_interpreter
# An environment that others made may be one that cannot be written.
if is_complete; then
    echo "set-up: reused $venv"
    exit
fi
check_place
mkdir -p "$(dirname "$venv")" || exit 1
lock="$venv.lock"
if [[ ! -w $(dirname "$venv") ]]; then lock="$inner_lock"; fi
exec 9>>"$lock" || exit 1
if command -v flock >/dev/null && ! flock --nonblock 9; then
    echo "set-up: waiting for another set-up of $venv"
    flock 9
fi
set_up
