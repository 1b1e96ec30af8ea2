#!/usr/bin/env bash
# Builds the extensions for aarch64, the processors of Ascend hosts, and runs the tests of csrc/, of the reader and of
# scorers on them, under emulation; then compares what both processors make of the same input, bit for bit. Nothing in
# the project is changed, and no root is needed. 20 minutes on two cores, most of it emulation.
#   bash csrc/aarch64.sh               all tests of csrc/ that are not slow
#   bash csrc/aarch64.sh tests/csrc -k packing      arguments go to pytest
# Needs the cross compiler and the emulator on PATH (Debian: apt-get install g++-aarch64-linux-gnu qemu-user-static), and
# apt-get and pip, which fetch Python 3.11 and the wheels of aarch64.
# PYTHON: this machine's interpreter, with the project installed (default: python, as after `source launch/setup_env.sh`).
# KAIYUAN_AARCH64: where what was fetched is kept (default: build/aarch64; about 1 GB).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
project="$PWD"
python="${PYTHON:-python}"
kept="$(mkdir -p "${KAIYUAN_AARCH64:-build/aarch64}" && cd "${KAIYUAN_AARCH64:-build/aarch64}" && pwd)"
root="$kept/root" packages="$kept/packages"
for tool in qemu-aarch64-static aarch64-linux-gnu-g++ apt-get dpkg-deb; do
    command -v "$tool" >/dev/null ||
        { echo "error: $tool is not on PATH: apt-get install g++-aarch64-linux-gnu qemu-user-static" >&2; exit 2; }
done

# apt with lists and a status of its own: it resolves for arm64 and needs no root.
fetch_root() {
    local apt="$kept/apt"
    mkdir -p "$apt"/{state/lists/partial,cache/archives/partial,sources} "$root"
    : >"$apt/state/status"
    printf '%s\n' 'Types: deb' 'URIs: http://deb.debian.org/debian' 'Suites: bookworm' 'Components: main' \
        'Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg' >"$apt/sources/debian.sources"
    local options=(-o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State="$apt/state"
        -o Dir::State::status="$apt/state/status" -o Dir::Cache="$apt/cache" -o Dir::Etc::sourcelist=/dev/null
        -o Dir::Etc::sourceparts="$apt/sources" -o APT::Install-Recommends=false -o APT::Sandbox::User= -qq)
    apt-get "${options[@]}" update
    apt-get "${options[@]}" install --yes --download-only python3.11 libpython3.11-dev libstdc++6 >/dev/null
    local package
    for package in "$apt"/cache/archives/*.deb; do dpkg-deb -x "$package" "$root"; done
    touch "$root/complete"
}

# Wheels of aarch64 for what these tests import. torch is not among them: PyPI's wheel needs CUDA's libraries.
fetch_packages() {
    local names='fsspec|numpy|orjson|packaging|psutil|pyarrow|pydantic|pyyaml|tokenizers|tqdm|typer|xxhash|omegaconf'
    names+='|jinja2|fasttext-community|hypothesis|pybind11|pytest|pytest-timeout|pytest-xdist|scipy|zstandard'
    grep -hE "^($names)==" requirements*.txt >"$kept/requirements.txt"
    "$python" -m pip install --quiet --no-compile --target "$packages" --upgrade --only-binary=:all: --python-version 3.11 \
        --implementation cp --platform manylinux_2_28_aarch64 --platform manylinux_2_17_aarch64 \
        --platform manylinux2014_aarch64 -r "$kept/requirements.txt" 'setuptools>=77.0.3'
    touch "$packages/complete"
}

# The interpreter of aarch64 as a command of this machine, which it and its children find as sys.executable.
write_interpreter() {
    mkdir -p "$kept/bin"
    cat >"$kept/bin/python" <<SCRIPT
#!/bin/sh
exec qemu-aarch64-static -L "$root" -0 "$kept/bin/python" -E PYTHONHOME="$root/usr" "$root/usr/bin/python3.11" "\$@"
SCRIPT
    chmod +x "$kept/bin/python"
}

[[ -f $root/complete ]] || fetch_root
[[ -f $packages/complete ]] || fetch_packages
write_interpreter
export PYTHONPATH="$packages" PYTHONDONTWRITEBYTECODE='' OMP_NUM_THREADS=1
emulated="$kept/bin/python"

copy="$kept/copy"
rm -rf "$copy" && mkdir "$copy"
cp -r csrc data_tools megatron_kaiyuan benchmarks tests launch pyproject.toml setup.py requirements*.txt LICENSE "$copy"
find "$copy" -name '*.so' -delete
cd "$copy"
# The project's own build, under Python of aarch64, with a compiler that runs on this machine.
CPPFLAGS="-I$root/usr/include/python3.11 -idirafter $root/usr/include" CC=aarch64-linux-gnu-gcc \
    CXX=aarch64-linux-gnu-g++ LDSHARED='aarch64-linux-gnu-g++ -shared' KAIYUAN_WARNINGS_AS_ERRORS=1 \
    "$emulated" setup.py -q build_ext --inplace

echo "aarch64: $("$emulated" -c 'import platform; print(platform.machine(), platform.python_version())'), $(
    aarch64-linux-gnu-g++ -dumpfullversion), $(qemu-aarch64-static --version | head -n 1)"
(cd "$project" && PYTHONPATH="$project" "$python" -m tests.csrc.products "$kept/model.bin") >"$kept/products.here"
"$emulated" -m tests.csrc.products "$kept/model.bin" >"$kept/products.aarch64"
diff "$kept/products.here" "$kept/products.aarch64" ||
    { echo "error: aarch64 (>) makes something else of the same input than this machine (<)" >&2; exit 1; }
echo "aarch64: $(wc -l <"$kept/products.here") products are the same, bit for bit"
# One file of slow tests compares with Megatron Core, which needs torch.
(($#)) || set -- -m "not slow" --ignore tests/csrc/test_index_large.py tests/csrc tests/data/test_reader.py \
    tests/data_tools/dedup/test_{kaiyuan_preset,normalisation,signatures}.py \
    tests/data_tools/scores/test_{linear,rules}_scorer.py
"$emulated" -m pytest -q -p no:cacheprovider "$@"
