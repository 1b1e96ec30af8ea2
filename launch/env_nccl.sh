# shellcheck shell=bash
# Settings for NVIDIA GPUs that matter in long jobs; what is set already wins. The launch scripts source it where they
# find a GPU. NCCL finds interfaces and InfiniBand adapters itself: set NCCL_SOCKET_IFNAME, NCCL_IB_HCA and
# GLOO_SOCKET_IFNAME only where it chooses wrongly, as NCCL_DEBUG=INFO shows.

# Kernels start in the order in which they were queued, which Megatron Core needs to overlap collectives with them.
export CUDA_DEVICE_MAX_CONNECTIONS="${CUDA_DEVICE_MAX_CONNECTIONS:-1}"
# Memory grows in place: tensors of many sizes leave no holes that end in out-of-memory.
export PYTORCH_CUDA_ALLOC_CONF="${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}"
# Each rank keeps its last collectives. When the watchdog ends a hung job, or a collective times out first, they are
# written to RUN_DIR/flight_recorder: they show which rank left the common order.
export TORCH_FR_BUFFER_SIZE="${TORCH_FR_BUFFER_SIZE:-2000}"
export TORCH_NCCL_DUMP_ON_TIMEOUT="${TORCH_NCCL_DUMP_ON_TIMEOUT:-1}"
# A link of InfiniBand or RoCE that is away for a minute is waited for (4 us x 2^22, several tries; NCCL's default is 20).
export NCCL_IB_TIMEOUT="${NCCL_IB_TIMEOUT:-22}"
# Errors say where they arose; INFO fills the log with every ring.
export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"
