#!/usr/bin/env bash
set -euo pipefail

usage() {
    cat <<'END'
Starts a training recipe on the processes of this node, after checking the recipe for that many processes.

  launch/torchrun.sh [options] RECIPE [key=value ...]

  --nproc-per-node N           processes on this node (NPROC_PER_NODE; default: the accelerators found, else 1)
  --nnodes N                   nodes (NNODES; default 1); run the same command on each of them
  --node-rank R                this node's number from 0 (NODE_RANK; default SLURM_NODEID)
  --rdzv-endpoint HOST:PORT    node 0's name and a free port on it (RDZV_ENDPOINT); needed with several nodes
  --restarts N                 start again after a failure, at most N times (RESTARTS; default 0); see below
  --restart-delay S            seconds before the first restart, doubled for each one that follows without a new
                               checkpoint in between, at most 600 (RESTART_DELAY; default 10)
  --dry-run                    check the recipe and print the command, start nothing

Example: launch/torchrun.sh --nproc-per-node 2 launch/recipes/quickstart/train.yaml train.seed=7

SIGTERM, SIGUSR1 or ctrl-C lets the workers save a checkpoint; the same command resumes it. They have
TORCH_ELASTIC_SHUTDOWN_TIMEOUT seconds for it (default 120).

A restart goes on from the newest checkpoint. There is none after a mistake (exit code 2), after one of these signals, or
when a restart ended without a newer checkpoint than it began with: the same would happen again. With several nodes
each one restarts its own processes, and they meet again at the endpoint.
Exit code: 0, 2 for a mistake in the recipe or the data, 143 after SIGTERM, 130 after ctrl-C, else a worker's own.
END
}

fail() {
    echo "error: $*; see launch/torchrun.sh --help" >&2
    exit 2
}

require_number() { # NAME VALUE LEAST
    if [[ ! $2 =~ ^[0-9]{1,6}$ ]] || ((10#$2 < $3)); then
        fail "$1 must be a whole number of at least $3, not '$2'"
    fi
}

# Prints the number of accelerators that this process may use.
count_devices() {
    local visible="${CUDA_VISIBLE_DEVICES-${ASCEND_RT_VISIBLE_DEVICES-all}}" found=0
    if [[ $visible == all ]]; then
        command -v nvidia-smi >/dev/null && found="$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ' || true)"
        ((found)) || found="$(find /dev -maxdepth 1 -name 'davinci[0-9]*' | wc -l)"
    elif [[ -n $visible && $visible != -1 ]]; then
        found="$(awk -F, '{print NF}' <<<"$visible")"
    fi
    echo "$found"
}

use_project_environment() {
    local root venv
    root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
    venv="${KAIYUAN_VENV:-$root/.venv}"
    if [[ -z ${VIRTUAL_ENV:-}${CONDA_PREFIX:-} && -x $venv/bin/python ]]; then
        export VIRTUAL_ENV="$venv" PATH="$venv/bin:$PATH"
    fi
    python -c 'import megatron_kaiyuan' 2>/dev/null ||
        fail "this Python has no megatron_kaiyuan: run 'source launch/setup_env.sh' or 'pip install -e .' first"
}

processes="${NPROC_PER_NODE:-}" nodes="${NNODES:-1}" node_rank="${NODE_RANK:-${SLURM_NODEID:-}}"
endpoint="${RDZV_ENDPOINT:-}" dry_run='' restarts="${RESTARTS:-0}" delay="${RESTART_DELAY:-10}"
while (($#)); do
    [[ $1 == --*=* ]] && set -- "${1%%=*}" "${1#*=}" "${@:2}"
    case "$1" in
        --nproc-per-node | --nnodes | --node-rank | --rdzv-endpoint | --restarts | --restart-delay) (($# > 1)) || fail "$1 needs a value" ;;&
        --nproc-per-node) processes="$2"; shift 2 ;;
        --nnodes) nodes="$2"; shift 2 ;;
        --node-rank) node_rank="$2"; shift 2 ;;
        --rdzv-endpoint) endpoint="$2"; shift 2 ;;
        --restarts) restarts="$2"; shift 2 ;;
        --restart-delay) delay="$2"; shift 2 ;;
        --dry-run) dry_run=yes; shift ;;
        -h | --help) usage; exit ;;
        -*) fail "unknown option $1" ;;
        *) break ;;
    esac
done
(($#)) || fail "name a recipe"

if [[ -z $processes ]]; then
    processes="$(count_devices)"
    ((processes)) || processes=1
fi
require_number --nproc-per-node "$processes" 1
require_number --nnodes "$nodes" 1
require_number --restarts "$restarts" 0
require_number --restart-delay "$delay" 0
restarts=$((10#$restarts)) delay=$((10#$delay))
if ((nodes > 1)); then
    require_number --node-rank "$node_rank" 0
    ((node_rank < nodes)) || fail "--node-rank $node_rank is not below --nnodes $nodes"
    [[ $endpoint == *:* ]] || fail "with several nodes, give --rdzv-endpoint HOST:PORT of node 0"
    where=(--nnodes "$nodes" --node-rank "$node_rank" --rdzv-backend static --rdzv-endpoint "$endpoint")
else
    where=(--standalone)
fi

use_project_environment
cores="$(nproc)"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > processes ? cores / processes : 1))}"

python -m megatron_kaiyuan.cli train "$@" --check --world-size $((nodes * processes))
command=(python -m megatron_kaiyuan.cluster.torchrun "${where[@]}" --nproc-per-node "$processes"
    -m megatron_kaiyuan.cli train "$@")
echo "launch: OMP_NUM_THREADS=$OMP_NUM_THREADS ${command[*]@Q}"
[[ -z $dry_run ]] || exit 0
# In place of this shell, so that a signal to its process id reaches the launcher.
((restarts)) || exec "${command[@]}"

run_dir="$(python -c 'import sys
from pathlib import Path
from megatron_kaiyuan.config import load_run
print(load_run(Path(sys.argv[1]), sys.argv[2:]).run_dir)' "$@")"
child='' stopped=''

# The number of the newest checkpoint; -1 for none.
newest_step() {
    local latest=''
    [[ ! -f $run_dir/latest ]] || read -r latest <"$run_dir/latest" || true
    [[ $latest =~ ^step_([0-9]+)$ ]] && echo "${BASH_REMATCH[1]}" || echo -1
}

forward() { # SIGNAL NUMBER
    stopped=$((128 + $2))
    [[ -z $child ]] || kill "-$1" "$child" 2>/dev/null || true
}

# Sets status. In a process group of its own, so that ctrl-C reaches the command once, from here.
run_in_background() { # COMMAND...
    set -m
    "$@" &
    child=$!
    set +m
    # A trap ends `wait` early.
    while kill -0 "$child" 2>/dev/null; do wait "$child" 2>/dev/null || true; done
    status=0
    wait "$child" 2>/dev/null || status=$?
    child=''
}

trap 'forward TERM 15' TERM
trap 'forward INT 2' INT
trap 'forward USR1 10' USR1

for ((attempt = 0; ; attempt++)); do
    before="$(newest_step)" marker="$run_dir/preempted.json"
    # A marker of an earlier stop is no answer of this attempt; training removes it when it goes on.
    earlier="$(cat "$marker" 2>/dev/null || true)"
    run_in_background "${command[@]}"
    [[ -z $stopped ]] || exit $((status ? status : stopped))
    ((status && status != 2)) || exit "$status"
    after="$(newest_step)"
    if [[ -f $marker && $(<"$marker") != "$earlier" ]]; then
        echo "launch: stopped as it was asked to at step $after; the same command goes on"
        exit "$status"
    fi
    if ((attempt && after <= before)); then
        echo "error: launch: restart $attempt ended with exit code $status and without a newer checkpoint than" \
            "step $before: it would end so again" >&2
        exit "$status"
    fi
    if ((attempt == restarts)); then
        echo "error: launch: ended with exit code $status after $restarts restarts" >&2
        exit "$status"
    fi
    ((after <= before)) || wait_seconds=$delay
    wait_seconds=${wait_seconds:-$delay}
    echo "launch: ended with exit code $status; restart $((attempt + 1)) of $restarts from step $after in" \
        "$wait_seconds s"
    run_in_background sleep "$wait_seconds"
    [[ -z $stopped ]] || exit "$stopped"
    wait_seconds=$((wait_seconds * 2 < 600 ? wait_seconds * 2 : 600))
done
