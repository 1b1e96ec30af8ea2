"""How much of a large tensor to work on at once, so that FP32 copies of it are small."""

from __future__ import annotations


def block_elements(device_type: str) -> int:
    """Elements of a block: what a CPU's last cache holds, or enough to keep a device busy."""
    # A quarter of it makes a step of 10 M parameters 1.1 times as long: its cores divide each operation again.
    return 1 << 20 if device_type == "cpu" else 1 << 25


def block_rows(elements: int, device_type: str) -> int:
    """Rows of so many elements each that make a block, at least one."""
    return max(block_elements(device_type) // elements, 1)


def block_queries(heads: int, length: int) -> int:
    """Queries of a block of `backend/blocked.py`: an eighth of them, or what makes 2^25 scores; at least 128.

    Each number of keys is a shape, for which some devices compile kernels: blocks of an eighth make eight, and compute
    9/16 of all pairs where a causal mask leaves one half. Multiples of 16 fill the units of products.
    """
    queries = min(-(-length // 8), (1 << 25) // (heads * length))
    return max(-(-queries // 16) * 16, 128)
