"""Who am I: rank, world and master, whatever started the process."""

from megatron_kaiyuan.cluster.discover import Rank, discover

__all__ = ["Rank", "discover"]
