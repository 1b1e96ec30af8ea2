"""What a run is: typed, validated, frozen after loading. Nothing here touches a device or torch."""

from megatron_kaiyuan.config.load import load_run, parse, read_yaml
from megatron_kaiyuan.config.presets import PRESETS
from megatron_kaiyuan.config.schema import (
    BackendConfig,
    FaultsConfig,
    ModelConfig,
    MonitorConfig,
    ParallelConfig,
    PhaseConfig,
    RunConfig,
    Section,
    TrainConfig,
)
from megatron_kaiyuan.config.world import check_world_size

__all__ = [
    "PRESETS",
    "BackendConfig",
    "FaultsConfig",
    "ModelConfig",
    "MonitorConfig",
    "ParallelConfig",
    "PhaseConfig",
    "RunConfig",
    "Section",
    "TrainConfig",
    "check_world_size",
    "load_run",
    "parse",
    "read_yaml",
]
