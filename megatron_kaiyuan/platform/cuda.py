"""NVIDIA GPUs: megatron-core's home, which gets torch's kernels where it looks for Apex's and there are none."""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.metadata
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch

from megatron_kaiyuan.platform import present
from megatron_kaiyuan.platform.base import Mark, NoDevice, Platform, device_index, first_line, recorded_collectives
from megatron_kaiyuan.platform.cuda_kernels import use_foreach_for_clipping, use_torch_to_accumulate
from megatron_kaiyuan.platform.numa import bind_beside_gpu


class CudaPlatform(Platform):
    """One GPU a rank, NCCL between them."""

    name = "cuda"
    collective_backend = "nccl"
    captures = True

    def activate(self, local_rank: int, local_world_size: int) -> None:
        count = torch.cuda.device_count()
        found = present.accelerators(os.environ)
        if count == 0 and found is not None and found.platform == "cuda":
            raise present.hidden(found, os.environ, has_cuda=torch.version.cuda is not None)
        if count == 0:
            raise NoDevice(
                "platform cuda: torch finds no GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES, or set platform=cpu",
                whole_node=True,
            )
        together = present.for_own_tasks(os.environ, "cuda") if local_rank >= count else 0
        self.device = torch.device("cuda", device_index("GPU", local_rank, count, local_world_size, together))
        torch.cuda.set_device(self.device)
        self.findings = _findings()
        cores = bind_beside_gpu(str(torch.cuda.get_device_properties(self.device).uuid), os.environ)
        if cores is not None:
            self.findings["cores"] = cores

    def adapt_megatron(self) -> None:
        use_foreach_for_clipping()
        lack = use_torch_to_accumulate()
        if lack is not None:
            self.findings["weight_gradient"] = lack

    def mark(self) -> Mark:
        return torch.cuda.Event(enable_timing=True)

    def flight_recorder(self) -> bytes | None:
        return recorded_collectives("_dump_nccl_trace", default="2000")

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)

    def memory(self) -> tuple[int, int] | None:
        return torch.cuda.mem_get_info(self.device)

    def peak_memory_bytes(self) -> int:
        return torch.cuda.max_memory_allocated(self.device)

    def device_name(self) -> str:
        return torch.cuda.get_device_name(self.device)

    def device_names(self) -> list[str]:
        found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        return [f"{one.name}, {one.total_memory / (1 << 30):.0f} GiB" for one in found]

    def capture(self, function: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        with self.beside():
            function()
        # A capture has memory of its own: what earlier steps have kept for themselves would lie idle.
        gc.collect()
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        # Other threads, a watchdog among them, keep calling CUDA.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            result = function()

        def play() -> torch.Tensor:
            graph.replay()
            return result

        return play

    @contextlib.contextmanager
    def beside(self) -> Iterator[None]:
        """On a stream of its own: the default stream, where autograd would wait for gradients, cannot be recorded."""
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            yield
        torch.cuda.current_stream(self.device).wait_stream(stream)

    def rng_state(self) -> Any:
        return torch.cuda.get_rng_state(self.device)

    def set_rng_state(self, state: Any) -> None:
        torch.cuda.set_rng_state(state, self.device)


def _findings() -> dict[str, str]:
    """Transformer Engine and Apex, from which megatron-core takes optimizer and clipping."""
    # Not `apex` itself: PyPI has an unrelated package of that name.
    found = f"{_import('Transformer Engine', 'transformer_engine.pytorch')}; {_import('Apex', 'apex.optimizers')}"
    return dict.fromkeys(("optimizer", "clipping"), found)


def _import(label: str, module: str) -> str:
    """What came of importing an optional library, as a phrase."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and module.startswith(error.name):
            return f"{label} not installed"
        return f"{label} not importable ({error})"
    except Exception as error:  # compiled extensions that do not fit fail in many ways
        return f"{label} not importable ({first_line(error)})"
    for name in importlib.metadata.packages_distributions().get(module.partition(".")[0], ()):
        return f"{label} {importlib.metadata.version(name)}"
    return label
