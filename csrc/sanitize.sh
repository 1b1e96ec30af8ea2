#!/usr/bin/env bash
# Builds the extensions with AddressSanitizer, UndefinedBehaviorSanitizer and warnings as errors, and runs the tests of
# csrc/, of the reader and of scorers on them, in a temporary copy of the project: nothing here is changed.
#   bash csrc/sanitize.sh              all tests of csrc/ that are not slow; half an hour
#   bash csrc/sanitize.sh --fast       every source through the compiler's checks, and damaged index files against the
#                                      sanitizers; a minute, as tests/run.sh does
#   bash csrc/sanitize.sh -m slow      arguments go to pytest
# PYTHON: the interpreter with the project's requirements (default: python, as after `source launch/setup_env.sh`).
# CXX: the compiler (default: g++).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${PYTHON:-python}"
read -ra compiler <<<"${CXX:-g++}"
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT

suffix="$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')"
read -ra includes <<<"$("$python" -m pybind11 --includes | sed 's/-I/-isystem /g')"
flags=(-std=c++17 -pthread -Wall -Wextra -Wpedantic -Wshadow -Werror "${includes[@]}")
sanitizers=(-g -fPIC -fvisibility=hidden "-fsanitize=address,undefined" -fno-sanitize-recover=all -fno-omit-frame-pointer)

# On all cores, one source each.
for_each_source() { # COMMAND... -- SOURCES...
    local command=()
    while [[ $1 != -- ]]; do command+=("$1") && shift; done
    printf '%s\0' "${@:2}" | xargs -0 -P "$(nproc)" -n 1 "${command[@]}"
}

# Those of extensions.txt whose name fits the pattern.
build() { # PATTERN
    local module sources
    while read -r module sources; do
        # shellcheck disable=SC2053 # a pattern
        if [[ $module == $1 ]]; then build_one "$module" "csrc/$sources"/*.cpp csrc/common/*.cpp; fi
    done < <(grep -v '^#' csrc/extensions.txt)
}

build_one() { # MODULE'S PATH, SOURCES...
    local objects="$folder/objects/$1"
    echo "== $1"
    mkdir -p "$objects"
    # shellcheck disable=SC2016 # for the inner shell
    for_each_source bash -c 'source="${@: -1}" && "${@:2:$#-2}" -c "$source" -o "$1/$(basename "$source").o"' build \
        "$objects" "${compiler[@]}" "${flags[@]}" "${sanitizers[@]}" "$optimization" -- "${@:2}"
    "${compiler[@]}" -shared -pthread "${sanitizers[@]}" "$objects"/*.o -o "$folder/$1$suffix"
}

cp -r csrc data_tools megatron_kaiyuan benchmarks tests pyproject.toml "$folder"
if [[ ${1:-} == --fast ]]; then
    shift
    echo "== warnings in all sources"
    for_each_source "${compiler[@]}" "${flags[@]}" -fsyntax-only -- csrc/*/*.cpp
    # The other extensions are those of the project.
    optimization=-O0
    build '*/_index'
    tests=(tests/csrc/test_index_fuzz.py)
else
    rm -f "$folder"/data_tools/*.so "$folder"/megatron_kaiyuan/data/*.so
    optimization=-O1
    build '*'
    tests=(tests/csrc tests/data/test_reader.py tests/data_tools/dedup/test_{kaiyuan_preset,normalisation,signatures}.py
        tests/data_tools/scores/test_{linear,rules}_scorer.py)
fi

# The interpreter is not built with the sanitizers: their library must be there before it, and libstdc++ too, or the
# first exception is not found. Python itself leaks at exit.
preload="$("${compiler[@]}" -print-file-name=libasan.so) $("${compiler[@]}" -print-file-name=libstdc++.so)"
cd "$folder"
(($#)) || set -- -m "not slow"
# Everything takes ten times as long.
env LD_PRELOAD="$preload" ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
    PYTHONPATH="$folder" PYTHONMALLOC=malloc OMP_NUM_THREADS=1 "$python" -m pytest -q -p no:cacheprovider --timeout 3000 \
    "${tests[@]}" "$@"
echo "sanitize: no error found by $("${compiler[@]}" -dumpfullversion -dumpversion | head -n 1) in ${tests[*]}"
