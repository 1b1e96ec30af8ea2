"""Which layouts are listed, against the trainer's own checks tried one by one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from megatron_kaiyuan.config import RunConfig, check_world_size, load_run
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.planning.layouts import legal_layouts
from tests.helpers.training.small_recipe import KAIYUAN_2B, small_run


def shapes(layouts: list[RunConfig]) -> set[tuple[int, int, bool, int]]:
    return {
        (
            layout.parallel.tensor_model_parallel_size,
            layout.parallel.pipeline_model_parallel_size,
            layout.parallel.sequence_parallel,
            layout.train.micro_batch_size,
        )
        for layout in layouts
    }


def trainer_takes(run: RunConfig, ranks: int, tensor: int, pipeline: int, sequence: bool, micro: int) -> bool:
    parallel = {
        "tensor_model_parallel_size": tensor,
        "pipeline_model_parallel_size": pipeline,
        "sequence_parallel": sequence,
    }
    try:
        changed = run.model_dump()
        changed["parallel"] |= parallel
        changed["train"] |= {"micro_batch_size": micro}
        check_world_size(RunConfig.model_validate(changed), ranks)
    except (UserError, ValueError):
        return False
    return True


@pytest.mark.parametrize("ranks", [1, 2, 4, 8, 12, 32])
def test_all_that_the_trainer_takes_and_nothing_else(ranks: int) -> None:
    run = small_run(train={"global_batch_size": 48, "micro_batch_size": 3})
    expected = {
        (tensor, pipeline, sequence, micro)
        for tensor in range(1, 33)
        for pipeline in range(1, 33)
        for sequence in ({False, tensor > 1})
        for micro in (1, 2, 3, 4, 8, 16, 32)
        if trainer_takes(run, ranks, tensor, pipeline, sequence, micro)
    }
    assert expected and shapes(legal_layouts(run, ranks)) == expected


def test_a_stage_for_each_layer_and_tens_of_thousands_of_ranks() -> None:
    run = load_run(Path(KAIYUAN_2B))
    assert {pipeline for _, pipeline, _, _ in shapes(legal_layouts(run, 7 * 2048))} == {7, 14, 28}
    started = time.process_time()
    assert {pipeline for _, pipeline, _, _ in shapes(legal_layouts(run, 28 * 1024))} == {7, 14, 28}
    assert time.process_time() - started < 2


@pytest.mark.parametrize("ranks", [3, 24, 34, 96])
def test_no_layout_names_numbers_that_work(ranks: int) -> None:
    run = load_run(Path(KAIYUAN_2B))
    with pytest.raises(UserError, match=f"--gpus {ranks}: no legal layout") as caught:
        legal_layouts(run, ranks)
    counts, _, batches = str(caught.value).partition("; use ")[2].partition(" GPUs, or train.global_batch_size=")
    for count in counts.split(" or "):
        assert legal_layouts(run, int(count))
    for batch in batches.split(" or "):
        assert legal_layouts(load_run(Path(KAIYUAN_2B), [f"train.global_batch_size={batch}"]), ranks)
