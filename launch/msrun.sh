#!/usr/bin/env bash
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat <<'END'
Starts a training recipe through MindSpore's msrun, for Ascend sites that use it, after checking the recipe.

  launch/msrun.sh [options] RECIPE [key=value ...]

  --nproc-per-node N     processes on each node (NPROC_PER_NODE; default: the accelerators found, else 1)
  --nnodes N             nodes (NNODES; default 1); run the same command on each of them
  --node-rank R          this node's number from 0 (NODE_RANK); needed with several nodes
  --master-addr ADDRESS  node 0's IP address (MASTER_ADDR; default 127.0.0.1); needed with several nodes
  --master-port PORT     a port on it that is free, and the next one too (MASTER_PORT; default 8118)
  --log-dir FOLDER       where msrun writes what the ranks print (LOG_DIR; default RUN_DIR/msrun)
  --restarts N           start again after a failure while checkpoints are won, and N times in a row without a newer one
                         (RESTARTS; default 0: never)
  --restart-delay S      seconds before a restart, doubled for each one that follows without a newer checkpoint, at most
                         600 (RESTART_DELAY; default 10)
  --preflight            examine all ranks for half a minute first; bad nodes are named in
                         RUN_DIR/bad_nodes.json, and the exit code is 3 (docs/training.md)
  --dry-run              check the recipe and print the command, start nothing

Example: launch/msrun.sh --nproc-per-node 8 train.yaml train.precision=fp16

SIGTERM, SIGHUP, SIGUSR1 or ctrl-C lets the ranks save a checkpoint, for which they have checkpoint.preempt_deadline_seconds; the
same command resumes it. msrun itself would die and leave them, so they get the signal in its place.
Exit code: 0 only when the run has come to its end, 2 for a mistake (RUN_DIR/mistake.json), 143 after SIGTERM, 129
after SIGHUP, 138 after SIGUSR1, 130 after ctrl-C, 137 when a rank was killed, else a rank's own, which is kept in
RUN_DIR/first_failure.json, because msrun passes on none. docs/launch.md lists them.
END
}

processes="${NPROC_PER_NODE:-}" nodes="${NNODES:-1}" node_rank="${NODE_RANK:-}"
address="${MASTER_ADDR:-}" port="${MASTER_PORT:-8118}" log_dir="${LOG_DIR:-}"
restarts="${RESTARTS:-0}" delay="${RESTART_DELAY:-10}"
declare -A options=(
    [--nproc-per-node]=processes [--nnodes]=nodes [--node-rank]=node_rank [--master-addr]=address
    [--master-port]=port [--log-dir]=log_dir [--restarts]=restarts [--restart-delay]=delay)
parse_options "$@"
set -- "${arguments[@]}"

find_devices
processes="${processes:-$((devices ? devices : 1))}"
require_number --nproc-per-node "$processes" 1
require_number --nnodes "$nodes" 1
require_number --master-port "$port" 1
require_number --restarts "$restarts" 0
require_number --restart-delay "$delay" 0
if ((nodes > 1)); then
    # Without it msrun gives two workers the same rank.
    require_number --node-rank "$node_rank" 0
    ((node_rank < nodes)) || fail "--node-rank $node_rank is not below --nnodes $nodes"
    [[ -n $address ]] || fail "with several nodes, give --master-addr, the IP address of node 0"
fi

use_project_environment
command -v msrun >/dev/null || fail "there is no msrun on PATH: install mindspore, or use launch/torchrun.sh"
share_cores "$processes"
# Ranks make their own port of msrun's.
unset MASTER_ADDR MASTER_PORT
# msrun is the parent of its workers, with a process id that is not known yet.
export KAIYUAN_PARENT=0
world_size=$((nodes * processes))
check_recipe "$world_size" "$@"
check_hccl "$world_size" "$nodes"
run_dir="$(run_dir_of "$@")"
log_dir="${log_dir:-$run_dir/msrun}"
# --join: else msrun returns at once and leaves its workers. --tail_worker_log: no rank's; msrun's own readers of the logs
# outlive it when it is killed.
note_first_failure "$run_dir"
command=(msrun --worker_num "$world_size" --local_worker_num "$processes" --node_rank "${node_rank:-0}"
    --master_addr "${address:-127.0.0.1}" --master_port "$port" --log_dir "$log_dir" --join True
    --tail_worker_log "$world_size" "${rank_of_run[@]}" python -m megatron_kaiyuan.cli train "${preflight[@]}" "$@")
show "${command[@]}"

forward() { # SIGNAL
    local processes
    read -r -a processes < <(cat "/proc/$child/task/"*/children | tr '\n' ' ')
    kill "-$1" "${processes[@]}"
}

attempt() {
    local logs=() rank
    # This node's ranks write them.
    mkdir -p "$log_dir"
    for ((rank = ${node_rank:-0} * processes; ${#logs[@]} < processes; rank++)); do
        logs+=("$log_dir/worker_$rank.log")
        : >"${logs[-1]}"
    done
    ((${node_rank:-0} > 0)) || forget_first_failure "$run_dir"
    start "${command[@]}"
    tail --quiet --lines +1 --follow=name --pid "$child" "${logs[@]}" &
    finish
    # For the last lines.
    wait
}

run_to_its_end "$run_dir"
