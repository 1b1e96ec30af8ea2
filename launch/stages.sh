# shellcheck shell=bash
# Stages that are done once and reused afterwards. A signal lets the stage at work save; the exit code is 128 and its
# number, and the same command continues. To be sourced; needs
#   RUN      folder of the run; stages leave $RUN/logs/NAME.log and $RUN/stages/NAME
#   RECIPES  folder of recipes: a stage whose command names a file in it is done again when the file has changed
: "${RUN:?}" "${RECIPES:?}"
mkdir -p "$RUN/stages" "$RUN/logs"

names=() reused=()  # stages in order, and which of them were reused
redone=             # set once a stage was done: all stages after it have to be done too
continues=          # for a stage's command: set where an earlier start of this very stage was stopped or failed half-way
child='' stopped='' # the process group of the stage at work, and the signal that this script got
# For a stage to save and end; launchers take up to 120 seconds for it.
STOP_SECONDS=150

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
    for marker in "$RUN"/stages/.*.begun; do
        [[ $marker == "$RUN/stages/.$1.begun" ]] || rm -f "$marker"
    done
}

exit_code_of() { # SIGNAL
    echo $((128 + $(kill -l "$1")))
}

# ctrl-C, SIGTERM and a lost terminal (not under nohup) let the stage at work save and end.
stop_stage() { # SIGNAL
    stopped="${stopped:-$1}"
    [[ -z $child ]] || kill "-$1" -- "-$child" 2>/dev/null || true
}

# The command of a stage. Its shell waits for what is at work, which has got the signal too, and does nothing more.
run_command() { # COMMAND...
    local signal
    # shellcheck disable=SC2064
    for signal in INT TERM HUP; do trap "exit $(exit_code_of "$signal")" "$signal"; done
    "$@" || return
}

# Asks this process group to end when the script has been killed, which can pass nothing on then.
end_with_script() {
    trap '' INT TERM HUP
    while kill -0 $$ 2>/dev/null; do sleep 0.5; done
    kill -TERM 0
}

# Runs a stage's command in a process group of its own, which no signal to this script reaches but through it; sets
# status. Nothing of the group is left at the end.
run_in_group() { # LOG COMMAND...
    local log="$1" deadline watcher
    shift
    status=0
    trap 'stop_stage INT' INT
    trap 'stop_stage TERM' TERM
    trap 'stop_stage HUP' HUP
    set -m
    {
        set +m
        trap : INT TERM HUP
        end_with_script &
        watcher=$!
        # The figure is the last line of standard output; the log gets both streams.
        { trap : INT TERM HUP; run_command "$@" 2>&3 | keep "$log.out"; } 3>&1 | keep "$log" || status=$?
        # It has ended already where the signal came to the whole group.
        kill -KILL "$watcher" 2>/dev/null || true
        exit "$status"
    } </dev/null &
    child=$!
    set +m
    # A trap ends `wait` early.
    while kill -0 "$child" 2>/dev/null; do wait "$child" 2>/dev/null || true; done
    wait "$child" 2>/dev/null || status=$?
    # What a command that was stopped, or has failed, has started may be about to save.
    deadline=$((SECONDS + (status ? STOP_SECONDS : 0)))
    while ((SECONDS < deadline)) && kill -0 -- "-$child" 2>/dev/null; do sleep 0.1; done
    kill -KILL -- "-$child" 2>/dev/null || true
    child=''
    trap - INT TERM HUP
}

# tee that outlives a ctrl-C, a lost terminal and its own reader, so that a command which saves its work then can still
# print. It replaces its shell: for the end of a pipeline.
keep() { # FILE
    trap '' INT TERM HUP PIPE
    exec tee "$1"
}

# Runs COMMAND, shows and logs its output, and leaves $RUN/stages/NAME with lines: signature, seconds, artefact, figure.
stage() { # NAME ARTEFACT COMMAND...
    local name="$1" artefact="$2" marker="$RUN/stages/$1" log="$RUN/logs/$1.log" began=$SECONDS status
    local begun="$RUN/stages/.$1.begun"
    shift 2
    names+=("$name")
    if [[ -z $redone && -f $marker && -e $artefact && $(head -n 1 "$marker") == "$(signature "$@")" ]]; then
        reused+=("$name")
        echo "== $name: reused $artefact"
        return
    fi
    continues=
    if [[ -z $redone ]]; then
        # shellcheck disable=SC2034 # for the command
        [[ ! -f $begun || $(<"$begun") != "$(signature "$@")" ]] || continues=yes
        forget_other_stages "$name"
    fi
    redone=yes
    echo "== $name: $*"
    signature "$@" >"$begun" || true
    run_in_group "$log" "$@"
    if ((status == 0)) && [[ ! -e $artefact ]]; then
        echo "no $artefact was written" | tee -a "$log"
        status=1
    fi
    if ((status)) && [[ -n $stopped ]]; then
        echo "${RUN##*/}: stopped in stage $name; the same command continues" >&2
        exit "$(exit_code_of "$stopped")"
    fi
    if ((status)); then
        echo "error: ${RUN##*/}: stage $name failed (exit code $status), as the lines above say; log: $log" >&2
        exit "$status"
    fi
    printf '%s\n' "$(signature "$@")" $((SECONDS - began)) "$artefact" "$(tail -n 1 "$log.out")" >"$marker.tmp"
    rm "$log.out" "$begun"
    mv "$marker.tmp" "$marker"
    # The signal came when the stage was done.
    [[ -z $stopped ]] || exit "$(exit_code_of "$stopped")"
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
