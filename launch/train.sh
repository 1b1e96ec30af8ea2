#!/usr/bin/env bash
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat <<'END'
Trains a recipe with what is there: all accelerators of this machine, or its processor where it has none.

  launch/train.sh [options of launch/torchrun.sh] RECIPE [key=value ...]

Example: launch/train.sh train.yaml train.seed=7

On one node it is launch/torchrun.sh. Started by srun, mpirun, msrun, PALS' mpiexec or
'flux run' as one of several tasks, it is that rank. For several
nodes see launch/slurm.sbatch, launch/torchrun.sh --nnodes, launch/mpirun.sh --hosts, launch/msrun.sh --nnodes and
launch/k8s/pytorchjob.yaml.
Exit code: that of launch/torchrun.sh, or as a rank: 0 when the run has come to its end, 128 and the number of the signal
that stopped it, 2 for a mistake, 1 for any other failure.
END
}

case "${1:-}" in
    -h | --help) usage; exit ;;
    '') fail "name a recipe" ;;
esac
if [[ -n ${OMPI_COMM_WORLD_RANK:-}${PMI_RANK:-}${PALS_RANKID:-}${FLUX_TASK_RANK:-}${MS_ROLE:-}${RANK:-} ]] || ((${SLURM_STEP_NUM_TASKS:-1} > 1)); then
    find_devices
    use_project_environment
    exec python -m megatron_kaiyuan.cli train "$@"
fi
((${SLURM_JOB_NUM_NODES:-1} == 1)) ||
    fail "this Slurm job has $SLURM_JOB_NUM_NODES nodes: start it with 'sbatch launch/slurm.sbatch' or 'srun launch/train.sh'"
exec "$root/launch/torchrun.sh" "$@"
