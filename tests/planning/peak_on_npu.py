"""Train on an NPU (arguments as of `kaiyuan train`), then print the largest sum of bytes that tensors asked for."""

from __future__ import annotations

import sys

from megatron_kaiyuan.cli import main

if __name__ == "__main__":
    sys.argv = ["kaiyuan", "train", *sys.argv[1:]]
    try:
        main()
    finally:
        import torch

        # Without what the allocator adds: a block that is left over below 1 MiB stays with a large tensor.
        print("requested:", torch.npu.memory_stats()["requested_bytes.all.peak"])  # type: ignore[attr-defined]
