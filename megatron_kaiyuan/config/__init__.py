"""What a run is: typed, validated, frozen after loading. Nothing here touches a device or torch."""

from megatron_kaiyuan.config.backend import BackendConfig
from megatron_kaiyuan.config.data import PhaseConfig
from megatron_kaiyuan.config.dump import dump_yaml, one_line
from megatron_kaiyuan.config.faults import FaultsConfig
from megatron_kaiyuan.config.load import load_run, parse, read_yaml
from megatron_kaiyuan.config.model import ModelConfig
from megatron_kaiyuan.config.monitor import MonitorConfig
from megatron_kaiyuan.config.parallel import ParallelConfig
from megatron_kaiyuan.config.presets import PRESETS
from megatron_kaiyuan.config.schema import RunConfig
from megatron_kaiyuan.config.section import Section
from megatron_kaiyuan.config.train import TrainConfig
from megatron_kaiyuan.config.weights import WeightKind
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
    "WeightKind",
    "check_world_size",
    "dump_yaml",
    "load_run",
    "one_line",
    "parse",
    "read_yaml",
]
