"""`kaiyuan` with buckets of some thousand parameters, so that a small network has several: COMMAND [ARGUMENT]..."""

from __future__ import annotations

import functools

if __name__ == "__main__":
    from megatron_kaiyuan import cli, platform

    platform.activate("cpu")
    from megatron_kaiyuan.train import start

    start.DistributedDataParallelConfig = functools.partial(  # type: ignore[assignment,misc]
        start.DistributedDataParallelConfig, bucket_size=20_000
    )
    cli.main()
