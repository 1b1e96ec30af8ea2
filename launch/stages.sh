# shellcheck shell=bash
# Stages that are done once and reused afterwards. To be sourced; needs
#   RUN      folder of the run; stages leave $RUN/logs/NAME.log and $RUN/stages/NAME
#   RECIPES  folder of recipes: a stage whose command names a file in it is done again when the file has changed
: "${RUN:?}" "${RECIPES:?}"
mkdir -p "$RUN/stages" "$RUN/logs"

names=() reused=() # stages in order, and which of them were reused
redone=            # set once a stage was done: all stages after it have to be done too

# What a stage's result depends on: the command, the body of a shell function, recipes that it names.
signature() { # COMMAND...
    local word
    printf '%q ' "$@"
    {
        declare -f "$1" || true
        for word in "$@"; do [[ $word != $RECIPES/* ]] || cat "$word"; done
    } | cksum
}

# Their results are out of date from here on, also when this run ends before it comes to them.
forget_other_stages() {
    local marker
    for marker in "$RUN"/stages/*; do
        [[ " ${reused[*]} " == *" ${marker##*/} "* ]] || rm -f "$marker"
    done
}

# tee that outlives a ctrl-C, a lost terminal and its own reader, so that a command which saves its work then can still
# print.
keep() { # FILE
    (trap '' INT TERM HUP PIPE && exec tee "$1")
}

# Runs COMMAND, shows and logs its output, and leaves $RUN/stages/NAME with lines: signature, seconds, artefact, figure.
stage() { # NAME ARTEFACT COMMAND...
    local name="$1" artefact="$2" marker="$RUN/stages/$1" log="$RUN/logs/$1.log" began=$SECONDS status=0
    shift 2
    names+=("$name")
    if [[ -z $redone && -f $marker && -e $artefact && $(head -n 1 "$marker") == "$(signature "$@")" ]]; then
        reused+=("$name")
        echo "== $name: reused $artefact"
        return
    fi
    [[ -n $redone ]] || forget_other_stages
    redone=yes
    echo "== $name: $*"
    # The figure is the last line of standard output; the log gets both streams.
    { { "$@" 2>&3 | keep "$log.out"; } 3>&1 | keep "$log"; } || status=$?
    if ((status == 0)) && [[ ! -e $artefact ]]; then
        echo "no $artefact was written" | tee -a "$log"
        status=1
    fi
    if ((status)); then
        echo "error: ${RUN##*/}: stage $name failed (exit code $status), as the lines above say; log: $log" >&2
        exit "$status"
    fi
    printf '%s\n' "$(signature "$@")" $((SECONDS - began)) "$artefact" "$(tail -n 1 "$log.out")" >"$marker.tmp"
    rm "$log.out"
    mv "$marker.tmp" "$marker"
}

# One line a stage: seconds, artefact and figure.
show_table() {
    local name seconds artefact figure
    printf '\n%-10s %8s  %-36s %s\n' stage seconds artefact figure
    for name in "${names[@]}"; do
        { read -r _; read -r seconds; read -r artefact; read -r figure || true; } <"$RUN/stages/$name"
        [[ " ${reused[*]} " != *" $name "* ]] || seconds="reused"
        printf '%-10s %8s  %-36s %s\n' "$name" "$seconds" "$artefact" "$figure"
    done
}
