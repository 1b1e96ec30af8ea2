# shellcheck shell=bash
# Settings for Ascend NPUs that matter in long jobs, from the documentation of CANN and torch_npu; what is set already
# wins. The launch scripts source it where they find an NPU. Never run on the hardware by this project.

# CANN's own paths, where the image has not set them. Its script reads variables that are not set.
if [[ -z ${ASCEND_HOME_PATH:-} && -f ${ASCEND_TOOLKIT:=/usr/local/Ascend/ascend-toolkit}/set_env.sh ]]; then
    set +u
    # shellcheck source=/dev/null
    source "$ASCEND_TOOLKIT/set_env.sh"
    set -u
fi
# Seconds in which all ranks have to reach the first collective; CANN's 120 are too few where data opens unevenly.
export HCCL_CONNECT_TIMEOUT="${HCCL_CONNECT_TIMEOUT:-1200}"
# No file with the addresses of all hosts is asked for.
export HCCL_WHITELIST_DISABLE="${HCCL_WHITELIST_DISABLE:-1}"
# Sums in one order, so that a restart repeats a run bit for bit (Atlas A2 and A3).
export HCCL_DETERMINISTIC="${HCCL_DETERMINISTIC:-true}"
# Memory grows in place: tensors of many sizes leave no holes that end in out-of-memory.
export PYTORCH_NPU_ALLOC_CONF="${PYTORCH_NPU_ALLOC_CONF:-expandable_segments:True}"
# CANN's log: errors only, and in its own files, not between the lines of the job.
export ASCEND_GLOBAL_LOG_LEVEL="${ASCEND_GLOBAL_LOG_LEVEL:-3}" ASCEND_SLOG_PRINT_TO_STDOUT="${ASCEND_SLOG_PRINT_TO_STDOUT:-0}"
