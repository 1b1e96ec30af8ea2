# shellcheck shell=bash
# Settings for Ascend NPUs that matter in long jobs; what is set already wins. The launch scripts source it where they
# find an NPU. docs/npu.md names the source of each, and what is left to you. Never run on the hardware by this project.

# Set CANN's paths unless the image has set them. Look in the user's home first, then in /usr/local; for CANN 9 first,
# then for earlier versions. CANN's script reads unset variables, hence set +u.
if [[ -z ${ASCEND_HOME_PATH:-} ]]; then
    for kaiyuan_cann in "${ASCEND_TOOLKIT:-}" {"${HOME:-}",/usr/local}/Ascend/{cann,ascend-toolkit}; do
        [[ -f $kaiyuan_cann/set_env.sh ]] || continue
        set +u
        # shellcheck source=/dev/null
        source "$kaiyuan_cann/set_env.sh"
        set -u
        break
    done
    unset kaiyuan_cann
fi
# torch asks a "CUDA device", which an NPU is for it, for its compute capability at each broadcast, and fails on none. Any
# number does that turns nothing on: 8 and 9 would, and torch refuses less than 7.5.
export TORCH_NPU_DEVICE_CAPABILITY="${TORCH_NPU_DEVICE_CAPABILITY:-7.5}"
# Seconds in which all ranks have to reach the first collective; HCCL's 120 are too few where data opens unevenly.
# HCCL_EXEC_TIMEOUT, for every later one, follows from the recipe: training sets it.
export HCCL_CONNECT_TIMEOUT="${HCCL_CONNECT_TIMEOUT:-1200}"
# Sums in one order, so that a restart repeats a run bit for bit (Atlas A2 and A3; the first generation does not have it).
export HCCL_DETERMINISTIC="${HCCL_DETERMINISTIC:-true}"
# Memory grows in place: tensors of many sizes leave no holes that end in out-of-memory. Under one name: both are an error.
[[ -n ${PYTORCH_ALLOC_CONF:-} ]] ||
    export PYTORCH_NPU_ALLOC_CONF="${PYTORCH_NPU_ALLOC_CONF:-expandable_segments:True}"
# Operators that were compiled at a first start are there at the next one, on a disk of this host: CANN's default is the
# home folder, which many hosts may share. Nobody else may write there, because what lies there is run.
if [[ -z ${ACL_OP_COMPILER_CACHE_DIR:-}${ASCEND_CACHE_PATH:-} ]]; then
    kaiyuan_cache="/var/tmp/kaiyuan-operators-$UID"
    if (umask 077 && mkdir -p "$kaiyuan_cache") 2>/dev/null && [[ -O $kaiyuan_cache && ! -L $kaiyuan_cache ]]; then
        export ACL_OP_COMPILER_CACHE_DIR="$kaiyuan_cache"
    fi
    unset kaiyuan_cache
fi
# CANN's log: errors only, and in its own files, not between the lines of the job.
export ASCEND_GLOBAL_LOG_LEVEL="${ASCEND_GLOBAL_LOG_LEVEL:-3}" ASCEND_SLOG_PRINT_TO_STDOUT="${ASCEND_SLOG_PRINT_TO_STDOUT:-0}"
