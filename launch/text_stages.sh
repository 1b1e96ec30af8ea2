# shellcheck shell=bash
# Stages from harvested text to documents that are worth scoring. To be sourced after RUN is set.

# Each domain is a dataset of its own, named as its file.
named_texts() {
    local file
    for file in "$RUN"/text/*.train.jsonl; do
        echo "$(basename "$file" .train.jsonl)=$file"
    done
}

deduplicate() {
    local -a texts
    mapfile -t texts < <(named_texts)
    kaiyuan-data dedup --input "${texts[@]}" --across --output "$RUN/unique" --force
}

# What passes the rules of thumb of published datasets is what a classifier learns to tell from the rest.
train_classifier() {
    kaiyuan-data score --input "$RUN/unique" --output "$RUN/ruled" --scorer rules \
        --filter "rules_gopher > 0 and rules_fineweb > 0" --force || return
    kaiyuan-data scorer train --positives "$RUN/ruled/documents" --negatives "$RUN/ruled/dropped" \
        --output "$RUN/quality.bin" --dim 16 --buckets 100000 --force
}

preprocess() { # INPUT PREFIX [OPTION...]
    kaiyuan-data preprocess --input "$1" --output-prefix "$2" --tokenizer-model "$RUN/tokenizer/tokenizer.json" \
        --workers 2 "${@:3}"
}

# Its last line, the sum of all corpora, is the figure of a stage.
verify_corpora() {
    find "$RUN/corpora" -name '*.idx' | sed 's/\.idx$//' | sort | xargs kaiyuan-data verify
}
