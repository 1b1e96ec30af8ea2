#!/usr/bin/env bash
# Runs the tests that depend on Megatron Core with other versions of it than the pinned one. Each is installed into a
# folder of its own, without what it requires, and is found first; the environment stays as it is.
#   bash tests/megatron_versions.sh 0.17.1
#   bash tests/megatron_versions.sh 0.17.1 0.18.2 -- tests/model -k attention     arguments go to pytest
# From 0.17 on its metadata ask for Python 3.12, which its code of these paths does not need. From 0.18 on it imports
# triton, which torch brings for CUDA; where it is missing, it is installed beside.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

versions=()
while (($#)) && [[ $1 != -- ]]; do versions+=("$1"); shift; done
if (($#)); then shift; fi
if ((!${#versions[@]})); then sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2; fi
(($#)) || set -- tests/platform/test_megatron_internals.py tests/model tests/optim tests/checkpoint tests/monitor \
    tests/train/test_resume.py tests/train/test_reshard.py tests/train/test_parallel.py

failed=()
for version in "${versions[@]}"; do
    folder="build/megatron_core/$version"
    if [[ ! -d $folder/megatron ]]; then
        wanted=("megatron-core==$version")
        if [[ $version != 0.1[67].* ]] && ! python -c "import triton" 2>/dev/null; then wanted+=(triton); fi
        rm -rf "$folder"
        python -m pip install --quiet --disable-pip-version-check --no-deps --ignore-requires-python \
            --target "$folder" "${wanted[@]}"
    fi
    export PYTHONPATH="$PWD/$folder"
    found="$(python -W ignore -c "import megatron.core; print(megatron.core.__version__)")"
    # From 0.18 on the commit of the folder that Python was started in follows on the number.
    if [[ ${found%%+*} != "$version" ]]; then echo "error: Megatron Core $found was imported, not $version" >&2; exit 1; fi
    echo "== Megatron Core $version"
    python -m pytest -q -m "not slow and not gpu and not root" "$@" || failed+=("$version")
done
if ((${#failed[@]})); then echo "failed with Megatron Core: ${failed[*]}" >&2; exit 1; fi
