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
  --dry-run                    check the recipe and print the command, start nothing

Example: launch/torchrun.sh --nproc-per-node 2 launch/recipes/quickstart/train.yaml train.seed=7

SIGTERM or ctrl-C lets the workers save a checkpoint; the same command resumes it. They have
TORCH_ELASTIC_SHUTDOWN_TIMEOUT seconds for it (default 120).
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
endpoint="${RDZV_ENDPOINT:-}" dry_run=
while (($#)); do
    [[ $1 == --*=* ]] && set -- "${1%%=*}" "${1#*=}" "${@:2}"
    case "$1" in
        --nproc-per-node | --nnodes | --node-rank | --rdzv-endpoint) (($# > 1)) || fail "$1 needs a value" ;;&
        --nproc-per-node) processes="$2"; shift 2 ;;
        --nnodes) nodes="$2"; shift 2 ;;
        --node-rank) node_rank="$2"; shift 2 ;;
        --rdzv-endpoint) endpoint="$2"; shift 2 ;;
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
exec "${command[@]}"
