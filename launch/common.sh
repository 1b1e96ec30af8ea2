# shellcheck shell=bash
# What the launch scripts share. To be sourced after `set -euo pipefail`.

if [[ $(uname -s) != Linux || ! $BASH_VERSION =~ ^(4\.[4-9]|[5-9]|[1-9][0-9]) ]]; then
    echo "error: the launch scripts need Linux and bash 4.4 or newer, and this is $(uname -s) with bash $BASH_VERSION" >&2
    exit 2
fi
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# Of megatron_kaiyuan/exit_codes.py, where all of them are.
exit_mistake=2

# A reader that has gone, or a full disk under a log, must not end what runs: the one way to print.
trap '' PIPE
say() {
    echo "$*" 2>/dev/null || true
}

fail() {
    say "error: $*; see ${script:-launch/${0##*/}} --help" >&2
    exit "$exit_mistake"
}

require_number() { # NAME VALUE LEAST
    # Without leading zeros, which mean octal here.
    if [[ ! $2 =~ ^(0|[1-9][0-9]{0,5})$ ]] || (($2 < $3)); then
        fail "$1 must be a whole number of at least $3, not '$2'"
    fi
}

# Sets the variables that `options` maps options to, from --NAME VALUE and --NAME=VALUE, dry_run, and preflight, an option
# of `kaiyuan train`; what follows the options is left in arguments.
parse_options() { # ARGUMENT...
    dry_run='' preflight=()
    # shellcheck disable=SC2034 # preflight is for the script
    while (($#)); do
        case "$1" in
            -h | --help) usage; exit ;;
            --dry-run) dry_run=yes; shift ;;
            --preflight) preflight=(--preflight); shift ;;
            --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
            -*)
                [[ -n ${options[$1]:-} ]] || fail "unknown option $1"
                (($# > 1)) || fail "$1 needs a value"
                printf -v "${options[$1]}" %s "$2"
                shift 2
                ;;
            *) break ;;
        esac
    done
    (($#)) || fail "name a recipe"
    # shellcheck disable=SC2034 # for the script
    arguments=("$@")
}

# Sets platform (cuda, npu or cpu) and devices, how many accelerators this process may use; settings that they need.
find_devices() {
    local visible=''
    platform=cpu devices=0
    # Ascend's first: no one sets it elsewhere, and scripts written for GPUs set the other one on NPUs too.
    if [[ -v ASCEND_RT_VISIBLE_DEVICES ]]; then
        platform=npu visible="$ASCEND_RT_VISIBLE_DEVICES"
    elif [[ -v CUDA_VISIBLE_DEVICES ]]; then
        platform=cuda visible="$CUDA_VISIBLE_DEVICES"
    elif command -v nvidia-smi >/dev/null && devices="$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ')"; then
        platform=cuda
    elif devices="$(find /dev -maxdepth 1 -name 'davinci[0-9]*' | wc -l)" && ((devices)); then
        platform=npu
    fi
    [[ -z $visible || $visible == -1 ]] || devices="$(awk -F, '{print NF}' <<<"$visible")"
    ((devices)) || platform=cpu
    # shellcheck source=launch/env_nccl.sh
    [[ $platform != cuda ]] || source "$root/launch/env_nccl.sh"
    # shellcheck source=launch/env_ascend.sh
    [[ $platform != npu ]] || source "$root/launch/env_ascend.sh"
}

# Sets words from a variable's value, with the quotes of a shell and nothing else of it.
split_words() { # VARIABLE
    words=()
    [[ -n ${!1:-} ]] || return 0
    xargs -r true <<<"${!1}" 2>/dev/null || fail "$1 has a quote that is not closed: ${!1}"
    # shellcheck disable=SC2034 # for the script
    mapfile -t -d '' words < <(xargs -r printf '%s\0' <<<"${!1}")
}

has_project() { # INTERPRETER
    "$1" -c 'import megatron_kaiyuan' 2>/dev/null
}

# The Python that has the project: that of KAIYUAN_VENV where it is set, else the active one, else that of the project's
# own environment, else the one that `kaiyuan init` ran in when it wrote this folder.
use_project_environment() {
    local folder folders=("$root/.venv/bin")
    # A file of the current folder must hide no module, and sources without their extensions not what is installed.
    export PYTHONSAFEPATH=1
    # On this node's own disk (launch/stage_env.sh).
    if [[ -n ${KAIYUAN_STAGED:-} ]]; then
        KAIYUAN_VENV="$(bash "$root/launch/stage_env.sh" use "$KAIYUAN_STAGED")" || exit 2
    fi
    if [[ -n ${KAIYUAN_VENV:-} ]]; then
        has_project "$KAIYUAN_VENV/bin/python" ||
            fail "KAIYUAN_VENV=$KAIYUAN_VENV has no Python with megatron_kaiyuan: 'source launch/setup_env.sh' makes it," \
                "or unset KAIYUAN_VENV"
        export VIRTUAL_ENV="$KAIYUAN_VENV" PATH="$KAIYUAN_VENV/bin:$PATH"
        return
    fi
    ! has_project python || return 0
    [[ ! -f $root/launch/environment ]] || folders+=("$(<"$root/launch/environment")")
    for folder in "${folders[@]}"; do
        if has_project "$folder/python"; then
            export VIRTUAL_ENV="${folder%/bin}" PATH="$folder:$PATH"
            return
        fi
    done
    fail "this Python has no megatron_kaiyuan: activate the environment where it is installed, or run" \
        "'source launch/setup_env.sh' in the project first"
}

# The cores of this node, shared among its processes.
share_cores() { # PROCESSES
    local cores
    cores="$(nproc)"
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > $1 ? cores / $1 : 1))}"
}

check_recipe() { # WORLD_SIZE RECIPE [key=value ...]
    python -m megatron_kaiyuan.cli train "${@:2}" --check --world-size "$1"
}

# On NPUs: what HCCL would report at the first collective only, or not at all.
check_hccl() { # WORLD_SIZE NODES
    [[ $platform != npu ]] || python -m megatron_kaiyuan.cluster.hccl "$1" "$2"
}

# The command as it will run, so that it can be repeated by hand; the end of a dry run.
show() { # COMMAND...
    say "launch: OMP_NUM_THREADS=${OMP_NUM_THREADS:-} ${*@Q}"
    [[ -z ${dry_run:-} ]] || exit 0
}

run_dir_of() { # RECIPE [key=value ...], options of `kaiyuan train` among them
    local recipe="$1" overrides=()
    while shift && (($#)); do
        case "$1" in
            --init-from | --world-size) shift ;;
            -*) ;;
            *) overrides+=("$1") ;;
        esac
    done
    python -c 'import sys
from pathlib import Path
from megatron_kaiyuan.config import load_run
print(load_run(Path(sys.argv[1]), sys.argv[2:]).run_dir)' "$recipe" ${overrides[@]+"${overrides[@]}"}
}

# What runs, the signal that this script got, and the exit code of what ran.
child='' stopped='' status=0

# How a signal is passed on to what runs. A script whose launcher wants it otherwise redefines this.
forward() { # SIGNAL
    kill "-$1" "$child"
}

stop() { # SIGNAL
    stopped="$1"
    [[ -z $child ]] || forward "$1" 2>/dev/null || true
}

exit_if_stopped() {
    [[ -z $stopped ]] || exit $((128 + $(kill -l "$stopped")))
}

end_group() {
    [[ -z $child ]] || kill -KILL -- "-$child" 2>/dev/null || true
    child=''
}

# From here on signals are passed on to what runs, and nothing that runs is left when the script ends. SIGHUP under
# nohup stays ignored: bash sets no trap on a signal that was.
handle_signals() {
    local signal
    for signal in TERM HUP INT USR1; do
        # shellcheck disable=SC2064
        trap "stop $signal" "$signal"
    done
    trap end_group EXIT
}

# Runs a command and sets status.
run() { # COMMAND...
    start "$@"
    finish
}

# In a process group of its own, so that ctrl-C reaches it once, from here; it gets SIGTERM also when this script is
# killed.
start() { # COMMAND...
    exit_if_stopped
    set -m
    python -m megatron_kaiyuan.cluster.parent "$$" "$@" </dev/null &
    child=$!
    set +m
    [[ -z $stopped ]] || forward "$stopped" 2>/dev/null || true
}

finish() {
    # A trap ends `wait` early.
    while kill -0 "$child" 2>/dev/null; do wait "$child" 2>/dev/null || true; done
    status=0
    # shellcheck disable=SC2034 # for the script
    wait "$child" 2>/dev/null || status=$?
    end_group
}

# What a script launches, how many starts in a row may win no checkpoint, and the seconds before the first of them.
command=() restarts=0 delay=10

# One start of it, which sets status. A script with more to do redefines it.
attempt() {
    run "${command[@]}"
}

# Sets rank_of_run, which runs a rank where the launcher hides exit codes: the first that fails leaves its own in the folder.
note_first_failure() { # RUN_DIR
    # shellcheck disable=SC2034 # for the script
    rank_of_run=(python -m megatron_kaiyuan.cluster.first_failure "$1")
}

forget_first_failure() { # RUN_DIR
    rm -f "$1/first_failure.json"
}

has_first_failure() { # RUN_DIR
    [[ -e $1/first_failure.json ]]
}

look_at_run() { # RUN_DIR
    python -m megatron_kaiyuan.train.ending look "$1"
}

# What to do after an end, by the one rule of all launchers (megatron_kaiyuan/train/ending.py): sets action (end,
# stopped, again), code, since (starts in a row without a newer checkpoint), step and its place, and bad_nodes.
judge_end() { # RUN_DIR BEFORE SIGNAL SINCE
    local number=0 answer
    [[ -z $3 ]] || number="$(kill -l "$3")"
    # Where that cannot be asked (no memory for a process), the end is one.
    answer="$(python -m megatron_kaiyuan.train.ending judge "$1" "$2" "$status" "$number" "$4" "$restarts")" ||
        answer="end $((number ? 128 + number : status)) 0 -1"
    # shellcheck disable=SC2034 # bad_nodes is for launch/slurm.sbatch
    read -r action code since step bad_nodes <<<"$answer"
    place="step $step"
    ((step >= 0)) || place="the beginning, as there is no checkpoint yet"
}

# Starts `command`, and again after a failure while checkpoints are won, and `restarts` times in a row without a newer
# one; exits with the code of the last end.
run_to_its_end() { # RUN_DIR
    local before action code step place since=0 pause
    handle_signals
    while true; do
        before="$(look_at_run "$1")"
        attempt
        judge_end "$1" "$before" "$stopped" "$since"
        case "$action" in
            stopped) say "launch: stopped as it was asked to at step $step; the same command resumes it" ;;
            again)
                # Doubled for each one that follows without a newer checkpoint in between.
                pause=$((since > 7 ? 600 : delay << (since - 1)))
                pause=$((pause < 600 ? pause : 600))
                say "launch: ended with exit code $code; restart $since of $restarts without a newer checkpoint, from" \
                    "$place in $pause s"
                run sleep "$pause"
                exit_if_stopped
                continue
                ;;
            end)
                ((restarts == 0 || since < restarts)) ||
                    say "error: launch: restart $since won no newer checkpoint and ended with exit code $code:" \
                        "it would end so again, from $place" >&2
                ;;
        esac
        exit "$code"
    done
}
