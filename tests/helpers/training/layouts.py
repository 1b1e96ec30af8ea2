"""Layouts of ranks for tests of what is measured while a run trains: how many ranks, and fields of the recipe."""

from __future__ import annotations

import pytest

LAYOUTS: dict[str, tuple[int, list[str]]] = {
    "overlapped": (2, ["parallel.overlap_param_gather=true", "parallel.overlap_grad_reduce=true"]),
    "both": (
        4,
        [
            "parallel.tensor_model_parallel_size=2",
            "parallel.sequence_parallel=true",
            "parallel.pipeline_model_parallel_size=2",
        ],
    ),
    "virtual": (
        4,
        [
            "model.num_layers=4",
            "parallel.pipeline_model_parallel_size=2",
            "parallel.virtual_pipeline_model_parallel_size=2",
        ],
    ),
    "tensor": (4, ["parallel.tensor_model_parallel_size=2"]),
    "recomputed": (2, ["parallel.pipeline_model_parallel_size=2", "parallel.recompute_granularity=full"]),
}


def on_layouts(*quick: str, slow: tuple[str, ...]) -> pytest.MarkDecorator:
    """Parametrize a test by `layout`."""
    names = [*quick, *(pytest.param(name, marks=pytest.mark.slow) for name in slow)]
    return pytest.mark.parametrize("layout", names)
