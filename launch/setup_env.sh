# shellcheck shell=bash
# Makes the project's virtual environment, or reuses it, and puts it first on PATH. To be sourced:
#   source launch/setup_env.sh
# KAIYUAN_VENV  where the environment is (default: .venv in the project)
# KAIYUAN_REQUIREMENTS  one more file of requirements to install, in the project, as tests/run.sh has
# KAIYUAN_NPU   1: requirements-npu.txt too, torch_npu and a torch without CUDA; 0: not (default: where there is an NPU)
# PYTHON        the interpreter that makes it (default: the first of python3.11, python3.12, python3 that fits)
# pip's own settings (PIP_INDEX_URL, PIP_FIND_LINKS, ...) are respected. Needs no root, no terminal and no HOME.

kaiyuan_root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
kaiyuan_venv="${KAIYUAN_VENV:-$kaiyuan_root/.venv}"
[[ $kaiyuan_venv == /* ]] || kaiyuan_venv="$PWD/$kaiyuan_venv"

kaiyuan_error() {
    echo "error: set-up: $*" >&2
    return 1
}

kaiyuan_is_supported() { # INTERPRETER
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

kaiyuan_find_python() {
    local candidate
    if [[ -n ${PYTHON:-} ]]; then
        kaiyuan_is_supported "$PYTHON" ||
            { kaiyuan_error "PYTHON=$PYTHON is no Python 3.11 or newer, which requirements.txt needs"; return 1; }
        echo "$PYTHON"
        return
    fi
    for candidate in python3.11 python3.12 python3 python3.13 python; do
        if kaiyuan_is_supported "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    kaiyuan_error "no Python 3.11 or newer on PATH, which requirements.txt needs: install one or set PYTHON=/path/to/python3"
}

kaiyuan_check_tools() { # INTERPRETER
    "$1" -c 'import ensurepip, venv' 2>/dev/null ||
        { kaiyuan_error "$1 cannot make virtual environments: install python3-venv, or set PYTHON"; return 1; }
    "$1" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
        { kaiyuan_error "$1 has no Python.h, which the C++ extension needs: install python3-dev, or set PYTHON"; return 1; }
    command -v "${CXX:-c++}" g++ clang++ >/dev/null ||
        kaiyuan_error "no C++ compiler, which the extension needs: install g++ or clang++, or set CXX"
}

kaiyuan_has_npu() {
    [[ ${KAIYUAN_NPU:-$(find /dev -maxdepth 1 -name 'davinci[0-9]*' | wc -l)} != 0 ]]
}

# Everything that an installation depends on; the folder too, because the installation points into it.
kaiyuan_fingerprint() {
    (
        cd "$kaiyuan_root" && pwd && cat requirements.txt setup.py pyproject.toml
        ! kaiyuan_has_npu || cat requirements-npu.txt
        find csrc -type f | sort | xargs cat
    ) | cksum
}

kaiyuan_install() { # INTERPRETER LOG
    local pip=("$kaiyuan_venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off --no-compile)
    "$kaiyuan_venv/bin/python" -c 'import pip' 2>/dev/null || "$1" -m venv "$kaiyuan_venv" >>"$2" 2>&1 || return 1
    # First, because it says where torch comes from; alone, because that index knows few packages.
    ! kaiyuan_has_npu || "${pip[@]}" -r "$kaiyuan_root/requirements-npu.txt" >>"$2" 2>&1 || return 1
    "${pip[@]}" -r "$kaiyuan_root/requirements.txt" -e "$kaiyuan_root" >>"$2" 2>&1 || return 1
    # On all cores; pip would do it on one. Files that are not for this version of Python are no error.
    "$kaiyuan_venv/bin/python" -m compileall -qq -j 0 "$kaiyuan_venv/lib" >>"$2" 2>&1 || true
}

# Whether the environment still works, and the extensions still lie where the installation built them.
kaiyuan_is_installed() {
    (cd "$kaiyuan_root" && "$kaiyuan_venv/bin/python" -c 'import data_tools._curriculum, data_tools._dedup, data_tools._index
import data_tools._scores, megatron_kaiyuan.data._reader') 2>/dev/null
}

# More packages for an environment that is there; what is in it stays as it is.
kaiyuan_add() { # FILE
    local stamp="$kaiyuan_venv/${1//\//_}.stamp" log="$kaiyuan_venv/setup.log" fingerprint
    fingerprint="$(cksum <"$kaiyuan_root/$1")" || return 1
    [[ ! -f $stamp || $(<"$stamp") != "$fingerprint" ]] || return 0
    echo "set-up: installing $1 (some minutes; log: $log)"
    if ! "$kaiyuan_venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off \
        -r "$kaiyuan_root/$1" -c "$kaiyuan_root/requirements.txt" >>"$log" 2>&1; then
        tail -n 20 "$log" >&2
        kaiyuan_error "installation of $1 failed; the lines above are the end of $log"
        return 1
    fi
    echo "$fingerprint" >"$stamp"
}

# Runs while it holds the lock, so that two scripts that start together do not install over each other.
kaiyuan_set_up() {
    local stamp="$kaiyuan_venv/kaiyuan.stamp" log="$kaiyuan_venv/setup.log" fingerprint python
    fingerprint="$(kaiyuan_fingerprint)"
    if [[ -f $stamp && $(<"$stamp") == "$fingerprint" ]] && kaiyuan_is_installed; then
        echo "set-up: reused $kaiyuan_venv"
        return
    fi
    if [[ -n $(ls -A "$kaiyuan_venv" 2>/dev/null) && ! -f $kaiyuan_venv/pyvenv.cfg ]]; then
        kaiyuan_error "$kaiyuan_venv is not empty and no virtual environment: set KAIYUAN_VENV to another place"
        return 1
    fi
    python="$(kaiyuan_find_python)" && kaiyuan_check_tools "$python" || return 1
    mkdir -p "$kaiyuan_venv" && rm -f "$kaiyuan_venv"/*.stamp && : >"$log" || return 1
    echo "set-up: installing into $kaiyuan_venv (some minutes; log: $log)"
    SECONDS=0
    if ! kaiyuan_install "$python" "$log"; then
        tail -n 20 "$log" >&2
        kaiyuan_error "installation failed; the lines above are the end of $log"
        return 1
    fi
    echo "$fingerprint" >"$stamp"
    echo "set-up: ready in $SECONDS s"
}

kaiyuan_activate() {
    local lock="$kaiyuan_venv.lock"
    mkdir -p "$(dirname "$lock")" || return 1
    (
        if command -v flock >/dev/null && ! flock --nonblock 9; then
            echo "set-up: waiting for another set-up of $kaiyuan_venv"
            flock 9
        fi
        kaiyuan_set_up && if [[ -n ${KAIYUAN_REQUIREMENTS:-} ]]; then kaiyuan_add "$KAIYUAN_REQUIREMENTS"; fi
    ) 9>"$lock" || return 1
    export VIRTUAL_ENV="$kaiyuan_venv" PATH="$kaiyuan_venv/bin:$PATH"
    unset PYTHONHOME
}

kaiyuan_activate
