#!/usr/bin/env bash
# Quantile data benchmarking, once: what each slice of each dataset is worth, before the main run is paid for.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

RUN=runs/quantile_demo
RECIPES=launch/recipes/quantile_demo
# 10^6 bytes of text a domain, where the installed packages hold so much.
MEGABYTES=40
# The datasets that are cut into windows, and how wide: 3 % of their tokens are what a probe reads, once. The report's 2 %
# ask for half as much text again.
DATASETS=(code english)
WIDTH=0.03

usage() {
    cat <<'END'
Sets up, then cuts real text into windows at quantiles of a quality score, in runs/quantile_demo: text, duplicates, a
classifier, tokenizer, tokens, scores, windows; then probes of the windows, and the mixture that small runs say is best.

  bash launch/quantile_demo.sh            do what is not done yet
  bash launch/quantile_demo.sh --clean    start over

A stage is reused when its command and its recipe are the same as last time, its artefact is there, and no stage before
it was done again. After a change to the code, start over. Logs: runs/quantile_demo/logs.
ctrl-C, SIGTERM or a lost terminal lets the stage at work save what it has; the same command continues.
Exit code: 0 when all is done, 130, 143 or 129 after these signals, else that of the stage that failed.
END
}

preprocess_all() {
    local domain
    rm -rf "$RUN/corpora"
    for domain in $(basename -a "$RUN"/unique/documents/*); do
        preprocess "$RUN/unique/documents/$domain" "$RUN/corpora/$domain" || return
        preprocess "$RUN/text/$domain.heldout.jsonl" "$RUN/corpora/$domain.heldout" || return
    done
    verify_corpora
}

# A score for every corpus, as a column beside its tokens.
score_corpora() {
    local domain
    local -a corpora=()
    for domain in $(basename -a "$RUN"/unique/documents/*); do
        corpora+=("$domain=$RUN/corpora/${domain}_text_document")
    done
    kaiyuan-data score --corpus "${corpora[@]}" --scorer "linear=$RUN/quality.bin,name=score" --workers 2 --force
}

cut_windows() {
    local dataset
    local -a corpora=()
    for dataset in "${DATASETS[@]}"; do corpora+=("$dataset=$RUN/corpora/${dataset}_text_document"); done
    kaiyuan-data quantile "${corpora[@]}" --score score --by tokens --width "$WIDTH" --output "$RUN/windows" --force
}

case "${1:-}" in
    "") ;;
    --clean) rm -rf "$RUN" ;;
    -h | --help) usage; exit ;;
    *) echo "error: unknown option $1; see launch/quantile_demo.sh --help" >&2; exit 2 ;;
esac

source launch/setup_env.sh
source launch/stages.sh
source launch/text_stages.sh
# Nothing below may ask the network.
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=true

# --force: a stage that is done again replaces what it made before, and nothing else.
stage text "$RUN/text" kaiyuan-data harvest "$RUN/text" --packages --megabytes "$MEGABYTES" --held-out 0.02 --force
stage unique "$RUN/unique" deduplicate
stage classifier "$RUN/quality.bin" train_classifier
stage tokenizer "$RUN/tokenizer/tokenizer.json" \
    kaiyuan-data tokenizer train --input "$RUN"/text/*.train.jsonl --vocab-size 4096 \
    --output "$RUN/tokenizer/tokenizer.json" --force
stage tokens "$RUN/corpora" preprocess_all
stage scores "$RUN/corpora/code_text_document.manifest.json" score_corpora
stage windows "$RUN/windows/windows.json" cut_windows
stage probes "$RUN/probes/answer/answer.md" \
    kaiyuan probe "$RECIPES/probes.yaml" --output "$RUN/probes" --force

stage mix "$RUN/mix/order.yaml" kaiyuan mix "$RECIPES/mix.yaml" --output "$RUN/mix" --force

show_table
echo
echo "what each window is worth: $PWD/$RUN/probes/answer/answer.md"
echo "the mixture, with reasons: $PWD/$RUN/mix/order.yaml"
