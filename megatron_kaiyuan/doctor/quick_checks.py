"""Checks of the quick examination: the device of this rank, and collectives of all ranks."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from megatron_kaiyuan.cluster import Rank
from megatron_kaiyuan.doctor.examination import Examination

if TYPE_CHECKING:
    import torch

    from megatron_kaiyuan.platform.base import Platform

# What drivers and this process take of a device's memory at most, as a share and in bytes. More is another job's.
_MEMORY_TAKEN, _MEMORY_BYTES = 0.1, 2 << 30


def examine_device(found: Examination, device: Platform) -> None:
    """Check that products are right in every precision, and that memory is free."""
    import torch

    from megatron_kaiyuan.doctor.trial import PRODUCT_TOLERANCE, product_error
    from megatron_kaiyuan.platform.precisions import DTYPES

    drawn = torch.Generator().manual_seed(0)
    one, other = torch.randn(96, 256, generator=drawn), torch.randn(256, 64, generator=drawn)
    for precision in device.precisions:
        found.doing = f"a product in {precision}"
        error = product_error(one, other, DTYPES[precision], device.device)
        rounded = precision == "fp32" and device.products_round_fp32
        if not error <= PRODUCT_TOLERANCE["fp16" if rounded else precision]:
            found.problem(f"device: products in {precision} are off by {error:.1e} of their size", of_node=True)
    free, total = device.memory() or (0, 0)
    if total - free > max(_MEMORY_TAKEN * total, _MEMORY_BYTES):
        taken = f"{(total - free) / (1 << 30):.1f} GiB of its {total / (1 << 30):.0f} GiB"
        found.problem(f"device: {taken} are taken before the start, by a process of another job?", of_node=True)


def examine_collectives(
    found: Examination, store: torch.distributed.Store, who: Rank, device: Platform, hosts: list[str], seconds: float
) -> None:
    """Check collectives of all ranks and find the ranks that are slow; `seconds` are left of the time limit."""
    import torch

    from megatron_kaiyuan.doctor.exchanges import examine_exchanges
    from megatron_kaiyuan.doctor.outliers import examine_outliers

    with found.part("collectives"):
        found.doing = "the start of collectives"
        torch.distributed.init_process_group(
            device.collective_backend,
            store=torch.distributed.PrefixStore("groups", store),
            rank=who.rank,
            world_size=who.world_size,
            timeout=timedelta(seconds=2 * seconds),
        )
        examine_exchanges(found, device)
        examine_outliers(found, device, hosts)
        found.doing = "the end of collectives"
        torch.distributed.barrier()
