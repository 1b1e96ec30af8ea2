"""What a run is: typed, validated, frozen after loading. Nothing here touches a device or torch."""

from megatron_kaiyuan.config.load import load_run, parse, read_yaml
from megatron_kaiyuan.config.presets import PRESETS
from megatron_kaiyuan.config.schema import ModelConfig, ParallelConfig, PhaseConfig, RunConfig, Section

__all__ = [
    "PRESETS",
    "ModelConfig",
    "ParallelConfig",
    "PhaseConfig",
    "RunConfig",
    "Section",
    "load_run",
    "parse",
    "read_yaml",
]
