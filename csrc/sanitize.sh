#!/usr/bin/env bash
# Builds the extensions with AddressSanitizer, UndefinedBehaviorSanitizer and warnings as errors, and runs the tests of
# csrc/, of the reader and of scorers on them, in a temporary copy of the project: nothing here is changed.
#   bash csrc/sanitize.sh              all tests of csrc/ that are not slow
#   bash csrc/sanitize.sh -m slow      arguments go to pytest
# PYTHON: the interpreter with the project's requirements (default: python, as after `source launch/setup_env.sh`).
# CXX: the compiler (default: g++).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${PYTHON:-python}"
compiler="${CXX:-g++}"
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT

cp -r csrc data_tools megatron_kaiyuan benchmarks tests pyproject.toml "$folder"
rm -f "$folder"/data_tools/*.so "$folder"/megatron_kaiyuan/data/*.so

suffix="$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')"
read -ra includes <<<"$("$python" -m pybind11 --includes | sed 's/-I/-isystem /g')"
flags=(-std=c++17 -O1 -g -pthread -fPIC -shared -fvisibility=hidden -Wall -Wextra -Wpedantic -Wshadow -Werror
    "-fsanitize=address,undefined" -fno-sanitize-recover=all -fno-omit-frame-pointer)
build() { # MODULE'S PATH, SOURCES...
    local module="$1"
    shift
    echo "== $module"
    "$compiler" "${flags[@]}" "${includes[@]}" "$@" -o "$folder/$module$suffix"
}
build megatron_kaiyuan/data/_reader csrc/reader*.cpp csrc/index_format.cpp
build data_tools/_index csrc/index*.cpp
build data_tools/_scores csrc/scores/*.cpp
build data_tools/_dedup csrc/dedup/*.cpp csrc/{index_file,store}.cpp
build data_tools/_curriculum csrc/{algorithm1,bindings,dataset,interleave,output,store,index_file}.cpp csrc/packing*.cpp

# The interpreter is not built with the sanitizers: their library must be there before it, and libstdc++ too, or the
# first exception is not found. Python itself leaks at exit.
preload="$("$compiler" -print-file-name=libasan.so) $("$compiler" -print-file-name=libstdc++.so)"
cd "$folder"
(($#)) || set -- -m "not slow"
env LD_PRELOAD="$preload" ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
    PYTHONPATH="$folder" PYTHONMALLOC=malloc OMP_NUM_THREADS=1 "$python" -m pytest -q -p no:cacheprovider tests/csrc \
    tests/data/test_reader.py tests/data_tools/dedup/test_{kaiyuan_preset,normalisation,signatures}.py \
    tests/data_tools/scores/test_{linear,rules}_scorer.py "$@"
echo "sanitize: no error found by $("$compiler" -dumpfullversion -dumpversion | head -n 1) in the tests of csrc/"
