#!/usr/bin/env bash
# The whole way, once: raw text that this machine already has in, an evaluated model and a report out.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

RUN=runs/quickstart
RECIPES=launch/recipes/quickstart

usage() {
    cat <<'END'
Sets up, then goes the whole way on two CPU processes in runs/quickstart: text, duplicates, quality scores, tokenizer,
tokens, order, training with an interruption half-way, averaging, export, evaluation, report.

  bash launch/quickstart.sh            do what is not done yet
  bash launch/quickstart.sh --clean    start over

A stage is reused when its command and its recipe are the same as last time, its artefact is there, and no stage before
it was done again. After a change to the code, start over. Logs: runs/quickstart/logs.
ctrl-C, SIGTERM or a lost terminal lets the stage at work save what it has; the same command continues, training too.
Exit code: 0 when all is done, 130, 143 or 129 after these signals, else that of the stage that failed.
END
}

# Prints a, b, ... of folders RUN/scored/documents/a, ...
domains() {
    basename -a "$RUN"/scored/documents/*
}

preprocess_all() {
    local domain
    rm -rf "$RUN/corpora"
    for domain in $(domains); do
        preprocess "$RUN/scored/documents/$domain" "$RUN/corpora/$domain" --score-keys score || return
        preprocess "$RUN/text/$domain.heldout.jsonl" "$RUN/corpora/$domain.heldout" || return
    done
    verify_corpora
}

train() { # RECIPE
    launch/torchrun.sh --nproc-per-node 2 "$1"
}

last_step() {
    grep -o '"step": *[0-9]*' "$RUN/train/metrics.jsonl" 2>/dev/null | tail -n 1 | grep -o '[0-9]*$' || echo 0
}

# The user's own stop of the launcher that runs in the background: it saves, and the stage is not done.
stop_training() { # PROCESS SIGNAL
    kill -TERM "$1" 2>/dev/null || true
    while kill -0 "$1" 2>/dev/null; do wait "$1" 2>/dev/null || true; done
    exit "$(exit_code_of "$2")"
}

# A pre-emption as a cluster does it: SIGTERM to the launcher, here after half of the steps.
train_until_preempted() { # RECIPE
    local check steps launcher signal status=0
    # shellcheck disable=SC2154 # stages.sh sets it
    [[ -n $continues ]] || rm -rf "$RUN/train"
    check="$(kaiyuan train "$1" --check --world-size 2)" || return
    steps="$(grep -o '[0-9,]* steps' <<<"$check" | tr -cd '0-9')"
    launch/torchrun.sh --nproc-per-node 2 "$1" &
    launcher=$!
    # shellcheck disable=SC2064
    for signal in INT TERM HUP; do trap "stop_training $launcher $signal" "$signal"; done
    # What an earlier start has written does not count: this one may still be on its way to its first step.
    until [[ $RUN/train/metrics.jsonl -nt $RUN/stages/.train.begun ]] && (($(last_step) * 2 >= steps)); do
        if ! kill -0 "$launcher" 2>/dev/null; then
            wait "$launcher" || status=$?
            echo "training ended with exit code $status before half of its $steps steps"
            return $((status ? status : 1))
        fi
        sleep 0.5
    done
    echo "SIGTERM to the launcher (process $launcher) at step $(last_step) of $steps"
    kill -TERM "$launcher"
    wait "$launcher" || status=$?
    ((status == 143)) || { echo "the launcher ended with exit code $status, not 143 as after SIGTERM"; return 1; }
    if [[ $(<"$RUN/train/latest") != "step_$(last_step)" ]]; then
        echo "no checkpoint was saved at the stop: the newest is $(<"$RUN/train/latest"), the last step $(last_step)"
        return 1
    fi
    echo "train: stopped by SIGTERM at step $(last_step) of $steps, checkpoint saved"
}

case "${1:-}" in
    "") ;;
    --clean) rm -rf "$RUN" ;;
    -h | --help) usage; exit ;;
    *) echo "error: unknown option $1; see launch/quickstart.sh --help" >&2; exit 2 ;;
esac

source launch/setup_env.sh
source launch/stages.sh
source launch/text_stages.sh
# Nothing below may ask the network.
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false

# --force: a stage that is done again replaces what it made before, and nothing else.
stage text "$RUN/text" kaiyuan-data harvest "$RUN/text" --force
stage unique "$RUN/unique" deduplicate
stage classifier "$RUN/quality.bin" train_classifier
stage scores "$RUN/scored" \
    kaiyuan-data score --input "$RUN/unique" --output "$RUN/scored" --scorer "linear=$RUN/quality.bin,name=score" --force
stage audit "$RUN/audit.html" \
    kaiyuan-data audit "$RUN/scored" --score score --by domain --output "$RUN/audit.html" --force
stage tokenizer "$RUN/tokenizer/tokenizer.json" \
    kaiyuan-data tokenizer train --input "$RUN"/text/*.train.jsonl --vocab-size 8192 \
    --output "$RUN/tokenizer/tokenizer.json" --force
stage tokens "$RUN/corpora" preprocess_all
stage order "$RUN/phases" kaiyuan-data curriculum "$RECIPES/order.yaml" --output "$RUN/phases" --force
stage train "$RUN/train/latest" train_until_preempted "$RECIPES/train.yaml"
stage resume "$RUN/train/checkpoints" train "$RECIPES/train.yaml"
stage average "$RUN/train/averaged" kaiyuan average "$RUN/train" --last 4 --force
stage export "$RUN/export/averaged" \
    kaiyuan export "$RUN/train/averaged" --output "$RUN/export/averaged" --tokenizer "$RUN/tokenizer" --force
stage untrained "$RUN/export/untrained" \
    kaiyuan export "$RUN/train/checkpoints/step_0" --output "$RUN/export/untrained" --tokenizer "$RUN/tokenizer" \
    --force
stage eval "$RUN/train/evaluation.json" \
    kaiyuan eval "$RUN/export/averaged" --baseline "$RUN/export/untrained" \
    --held-out "$RUN"/corpora/*.heldout_text_document.idx --held-out-text "$RUN"/text/*.heldout.jsonl \
    --seq-length 256 --device cpu --output "$RUN/train/evaluation.json" --force
stage report "$RUN/report.html" kaiyuan report "$RUN/train" --output "$RUN/report.html" --force

show_table
echo
echo "report: $PWD/$RUN/report.html"
