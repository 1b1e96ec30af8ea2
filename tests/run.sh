#!/usr/bin/env bash
# Sets up, then runs the style checks, the type checker and the tests.
#   bash tests/run.sh                  everything that needs neither an accelerator nor root, and is not slow
#   bash tests/run.sh -m slow          arguments go to pytest, which then runs alone
#   bash tests/run.sh -m root          Slurm's daemons and a cut cable between two hosts; what is missing is an error
#   bash tests/run.sh tests/cluster -k slurm
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/setup_env.sh --dev
# Distributed tests start up to four processes of their own; one thread each keeps two cores from thrashing.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# Tests start hundreds of interpreters; without this each of them compiles the project again.
unset PYTHONDONTWRITEBYTECODE

if (($#)); then
    exec python -m pytest "$@"
fi

failed=()
check() { # COMMAND...
    echo "== $*"
    "$@" || failed+=("$*")
}

check ruff check .
check ruff format --check .
check mypy
check lint-imports --no-cache --no-logo
check shellcheck launch/*.sh launch/*.sbatch csrc/*.sh tests/*.sh .ci/run
check hadolint launch/docker/*.Dockerfile
# A minute; the whole of it takes too long for every change.
compiler="${CXX:-g++}"
if command -v "${compiler%% *}" >/dev/null; then check bash csrc/sanitize.sh --fast; fi
# In the order of tests/conftest.py, which begins with the longest file.
check python -m pytest -m "not slow and not gpu and not root" -n "${TEST_PROCESSES:-2}" \
    --dist loadfile --no-loadscope-reorder --durations=30

if ((${#failed[@]})); then
    printf 'failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
