#!/usr/bin/env bash
# Sets the project up under other versions of Python, in a temporary clone, and uses it there: from text to an exported
# network, a stop and a resume, and the tests that start few processes. Each version takes half an hour, an index or a
# folder of wheels, and 10 GB in TMPDIR, which are removed before the next one begins (KEEP=1: they stay).
#   bash tests/python_versions.sh 3.11.2 3.12 3.13
#   bash tests/python_versions.sh --here       the use and the tests alone, with the active environment, in a temporary folder
# An interpreter is looked for among all python3.12 on PATH, then among those of pyenv. What is not committed is not tried.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
(($#)) || { sed -n '2,7p' "$0" >&2; exit 2; }

# Rooms whose tests need no launcher.
tests=(tests/config tests/data tests/data_tools tests/csrc tests/model tests/optim tests/export tests/checkpoint
    tests/planning tests/report tests/starter tests/train/test_resume.py tests/train/test_startup.py
    tests/train/test_dry_run.py tests/train/hooks/test_monitoring.py tests/test_files.py tests/test_command_line.py)
folder=''
trap '[[ -z $folder || -n ${KEEP:-} ]] || rm -rf "$folder"' EXIT

find_version() { # 3.12, or 3.11.2
    local found version
    while read -r found; do
        version="$("$found" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null || true)"
        if [[ $version == "$1" || $version == "$1".* ]]; then
            echo "$found"
            return
        fi
    done < <(type -ap "python$(cut -d . -f 1,2 <<<"$1")"; printf '%s\n' "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1"*/bin/python)
    echo "error: no Python $1 on PATH or among those of pyenv" >&2
    return 1
}

show() { # COMMAND...
    echo "== $*"
    "$@"
}

# 300 paragraphs of the project's own pages.
write_text() { # FILE
    python - "$1" <<'END'
import json, pathlib, random, sys

words = " ".join(path.read_text() for path in sorted(pathlib.Path("docs").glob("*.md"))).split()
draw = random.Random(1)
with open(sys.argv[1], "w") as file:
    for number in range(300):
        begin = draw.randrange(len(words) - 150)
        file.write(json.dumps({"text": " ".join(words[begin : begin + 150]), "score": draw.random()}) + "\n")
END
}

# 10 steps, then 10 more by the same command, as after a stop.
use() {
    local train=(kaiyuan train "$folder/mine/train.yaml" train.seq_length=64 train.global_batch_size=8 train.micro_batch_size=8
        optimizer.warmup_tokens=512 checkpoint.save_every_steps=5)
    show kaiyuan --version
    write_text "$folder/texts.jsonl"
    show kaiyuan-data tokenizer train --input "$folder/texts.jsonl" --vocab-size 800 --output "$folder/tokenizer.json"
    show kaiyuan-data preprocess --input "$folder/texts.jsonl" --output-prefix "$folder/web" --tokenizer-model "$folder/tokenizer.json" \
        --score-keys score
    show kaiyuan init "$folder/mine" --corpus "web=$folder/web_text_document"
    show kaiyuan-data curriculum "$folder/mine/order.yaml" --output "$folder/mine/phases"
    show "${train[@]}" train.train_tokens=5120
    show "${train[@]}" train.train_tokens=10240
    show kaiyuan export "$folder/mine/runs/first" --output "$folder/exported"
    show python - "$folder/exported" <<'END'
import sys

from transformers import AutoModelForCausalLM

print(f"{AutoModelForCausalLM.from_pretrained(sys.argv[1]).num_parameters():,} parameters")
END
}

try_version() { # 3.12, or 3.11.2
    local interpreter
    interpreter="$(find_version "$1")"
    folder="$(mktemp -d)"
    git clone --quiet "$root" "$folder/clone"
    root="$folder/clone"
    cd "$root"
    show env PYTHON="$interpreter" KAIYUAN_VENV="$root/.venv" bash launch/make_env.sh --dev
    export KAIYUAN_VENV="$root/.venv" PATH="$root/.venv/bin:$PATH"
    du -sh "$KAIYUAN_VENV"
    try_here
}

try_here() {
    cd "$root"
    use
    show python -m pytest -q -p no:cacheprovider -m "not slow and not gpu and not root and not spark" "${tests[@]}"
    echo "python_versions: $(python -V) did all of it"
}

if [[ $1 == --here ]]; then
    folder="$(mktemp -d)"
    try_here
    exit
fi
for version in "$@"; do
    # Each in a shell of its own, which leaves no variable behind.
    (
        trap '[[ -z $folder || -n ${KEEP:-} ]] || rm -rf "$folder"' EXIT
        try_version "$version"
    )
done
