#!/usr/bin/env bash
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat <<'END'
Starts a training recipe on the processes of this node, after checking the recipe for that many processes.

  launch/torchrun.sh [options] RECIPE [key=value ...]

  --nproc-per-node N           processes on this node (NPROC_PER_NODE; default: the accelerators found, else 1)
  --nnodes N | MIN:MAX         nodes (NNODES; default 1); run the same command on each of them
  --node-rank R                this node's number from 0 (NODE_RANK; default SLURM_NODEID); without it the nodes number
                               themselves
  --rdzv-endpoint HOST:PORT    node 0's name and a free port on it (RDZV_ENDPOINT); needed with several nodes
  --log-dir FOLDER             also write each rank's output and the trace of its error there (LOG_DIR)
  --restarts N                 start again after a failure while checkpoints are won, and N times in a row without a
                               newer one (RESTARTS; default 0: never); see below
  --restart-delay S            seconds before a restart, doubled for each one that follows without a newer checkpoint,
                               at most 600 (RESTART_DELAY; default 10)
  --preflight                  examine all ranks for half a minute first; bad nodes are named in
                               RUN_DIR/bad_nodes.json, and the exit code is 3 (docs/training.md)
  --dry-run                    check the recipe and print the command, start nothing

Where they are not set, torchrun's own PET_NPROC_PER_NODE, PET_NNODES, PET_NODE_RANK and PET_MASTER_ADDR with
PET_MASTER_PORT, or PET_RDZV_ENDPOINT, are read, which Kubeflow's Trainer sets; any other PET_* is refused.

Example: launch/torchrun.sh --nproc-per-node 2 train.yaml train.seed=7

SIGTERM, SIGHUP (a lost terminal; not under nohup), SIGUSR1 or ctrl-C lets the workers save a checkpoint; the same command
resumes it. They have TORCH_ELASTIC_SHUTDOWN_TIMEOUT seconds for it (default 120). Lost output stops nothing.

A restart continues from the newest checkpoint. There is none after a mistake (exit code 2), and none when the run was
asked to stop, on whichever node. With several nodes each one restarts its own processes, and they meet again at the
endpoint; with MIN:MAX those that are there within 30 seconds continue without the others.
Exit code: 0 only when the run has come to its end, 2 for a mistake in the recipe or the data, 143 after SIGTERM (on every
node, also when another one was asked), 129 after SIGHUP, 138 after SIGUSR1, 130 after ctrl-C, 137 when a worker was
killed, else a worker's own. docs/launch.md lists them.
END
}

# Kubeflow's Trainer (v2) gives torchrun's own variables to a pod.
[[ ! ${PET_NPROC_PER_NODE:-} =~ ^(auto|cpu|gpu)$ ]] || unset PET_NPROC_PER_NODE
endpoint="${PET_MASTER_ADDR:+$PET_MASTER_ADDR:${PET_MASTER_PORT:-29500}}"
processes="${NPROC_PER_NODE:-${PET_NPROC_PER_NODE:-}}" nodes="${NNODES:-${PET_NNODES:-1}}"
node_rank="${NODE_RANK:-${PET_NODE_RANK:-${SLURM_NODEID:-}}}"
endpoint="${RDZV_ENDPOINT:-${PET_RDZV_ENDPOINT:-$endpoint}}"
log_dir="${LOG_DIR:-}" restarts="${RESTARTS:-0}" delay="${RESTART_DELAY:-10}"
declare -A options=(
    [--nproc-per-node]=processes [--nnodes]=nodes [--node-rank]=node_rank [--rdzv-endpoint]=endpoint
    [--log-dir]=log_dir [--restarts]=restarts [--restart-delay]=delay)
parse_options "$@"
# They would reach torchrun beside this script's options.
for name in "${!PET_@}"; do
    [[ $name =~ ^PET_(NPROC_PER_NODE|NNODES|NODE_RANK|MASTER_ADDR|MASTER_PORT|RDZV_ENDPOINT)$ ]] ||
        fail "$name=${!name} is not read, and torchrun would take it: unset it, and use an option of this script"
    unset "$name"
done
set -- "${arguments[@]}"

find_devices
processes="${processes:-$((devices ? devices : 1))}"
fewest="${nodes%:*}" most="${nodes#*:}"
require_number --nproc-per-node "$processes" 1
require_number --nnodes "$fewest" 1
require_number --nnodes "$most" "$fewest"
require_number --restarts "$restarts" 0
require_number --restart-delay "$delay" 0

if ((most > 1)); then
    [[ $endpoint == *:* ]] || fail "with several nodes, give --rdzv-endpoint HOST:PORT of node 0"
    require_number "--rdzv-endpoint's port" "${endpoint##*:}" 1
    ((${endpoint##*:} <= 65535)) || fail "--rdzv-endpoint $endpoint: a port is at most 65535"
fi
if ((most == 1)); then
    where=(--standalone)
elif [[ $fewest == "$most" && -n $node_rank ]]; then
    # static: ranks follow the nodes' numbers, so that neighbours in a tensor or pipeline group stay neighbours from start
    # to start, and nothing has to be elected.
    require_number --node-rank "$node_rank" 0
    ((node_rank < nodes)) || fail "--node-rank $node_rank is not below --nnodes $nodes"
    where=(--nnodes "$nodes" --node-rank "$node_rank" --rdzv-backend static --rdzv-endpoint "$endpoint")
else
    # c10d: the nodes agree on their numbers and on how many they are; static can do neither.
    where=(--nnodes "$nodes" --rdzv-backend c10d --rdzv-endpoint "$endpoint")
    # When a node joins, workers start again under the same launchers, whose store holds gloo's old addresses.
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
fi
# Both: on the terminal, marked with the rank, and in a file.
[[ -z $log_dir ]] || where+=(--log-dir "$log_dir" --tee 3)

use_project_environment
share_cores "$processes"
check_recipe $((fewest * processes)) "$@"
((fewest == most)) || check_recipe $((most * processes)) "$@"
check_hccl $((most * processes)) "$most"
command=(python -m megatron_kaiyuan.cluster.torchrun "${where[@]}" --nproc-per-node "$processes"
    -m megatron_kaiyuan.cli train "${preflight[@]}" "$@")
show "${command[@]}"
run_dir="$(run_dir_of "$@")"
run_to_its_end "$run_dir"
