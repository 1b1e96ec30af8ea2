from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from megatron_kaiyuan.config import RunConfig, check_world_size, load_run
from megatron_kaiyuan.errors import UserError

RECIPE = {
    "run_dir": "runs/x",
    "model": {"preset": "kaiyuan-tiny"},
    "data": {"phases": [{"path": "phase", "peak_lr": 1e-3}]},
    "train": {"seq_length": 128, "micro_batch_size": 2, "global_batch_size": 8},
}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


def refused(recipe: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as error:
        load_run(recipe, overrides)
    message = str(error.value)
    assert "\n" not in message
    assert str(recipe) in message or "override" in message
    return message


def test_preset_fills_in_and_single_fields_override(recipe: Path) -> None:
    run = load_run(recipe, ["model.num_layers=6", "data.phases.0.peak_lr=5e-3", "parallel.sequence_parallel=true"])
    assert (run.model.num_layers, run.model.hidden_size) == (6, 128)
    assert run.data.phases[0].peak_lr == 5e-3
    assert run.parallel.sequence_parallel


def test_frozen(recipe: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_run(recipe).train.seed = 3  # type: ignore[misc]


def test_what_is_written_back_is_read_again_as_the_same(recipe: Path) -> None:
    run = load_run(recipe)
    recipe.write_text(yaml.safe_dump(run.model_dump(mode="json")))
    assert load_run(recipe) == run


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.seqlength=1", "train.seqlength: unknown field; did you mean 'seq_length'?"),
        ("modle.num_layers=1", "modle: unknown field; did you mean 'model'?"),
        ("data.phases.0.peak_lrr=1", "data.phases.0.peak_lrr: unknown field; did you mean 'peak_lr'?"),
        ("train.seq_length=many", "train.seq_length: write a whole number, as 4096"),
        ("train.seq_length=0", "train.seq_length: input should be greater than 0"),
        ("model.preset=huge", "model.preset"),
        ("train.precision=fp8", "train.precision"),
        ("model.kv_channels=33", "model.kv_channels"),
        ("train.global_batch_size=7", "global_batch_size 7 is not a multiple"),
        ("train.seq_length=4096", "max_position_embeddings 2048"),
        ("parallel.tensor_model_parallel_size=3", "tensor_model_parallel_size 3 equal parts"),
        ("model.num_query_groups=3", "num_query_groups 3"),
        ("optimizer.min_loss_scale=131072", "min_loss_scale 131072 is above initial_loss_scale 65536"),
        ("optimizer.qk_clip_tau=100", "optimizer.qk_clip_tau changes nothing with model.qk_layernorm"),
        ("monitor.activations_every_steps=-1", "monitor.activations_every_steps"),
        ("monitor.profile_steps=-1", "monitor.profile_steps: input should be greater than or equal to 0"),
        ("monitor.profile_steps=1000", "monitor.profile_steps: input should be less than or equal to 100"),
        ("monitor.peak_tflops=0", "monitor.peak_tflops: input should be greater than 0"),
        ("parallel.virtual_pipeline_model_parallel_size=2", "needs pipeline_model_parallel_size above 1"),
        (
            "parallel={pipeline_model_parallel_size: 2, virtual_pipeline_model_parallel_size: 3}",
            "num_layers 4 cannot be cut into parallel.pipeline_model_parallel_size 2 x "
            "virtual_pipeline_model_parallel_size 3 equal parts",
        ),
        ("parallel.context_parallel_size=2", "cuts sequences over ranks with Transformer Engine's attention only"),
        ("parallel.recompute_granularity=some", "recompute_granularity: input should be 'selective' or 'full'"),
        ("parallel.recompute_modules=[mlp]", "recompute_modules needs recompute_granularity: selective"),
        (
            "parallel={recompute_granularity: selective, recompute_modules: [layernorm]}",
            "Megatron Core 0.16 can recompute layernorm with Transformer Engine only; use core_attn and mlp",
        ),
        ("run_dir", "write section.field=value"),
        ("train.seq_length=[", "train.seq_length="),
        (
            "run_dir=${nothing}",
            "run_dir: Interpolation key 'nothing' not found; ${NAME} refers to a field of the recipe",
        ),
        ("run_dir=${oc.env:KAIYUAN_NOTHING}", "run_dir: Environment variable 'KAIYUAN_NOTHING' not found"),
        ("train.seed=true", "train.seed: write a number, not true"),
        ("data.phases.0.peak_lr=.inf", "data.phases.0.peak_lr: input should be a finite number, got inf"),
        ("monitor.prometheus_file=rows.txt", "rows.txt: the collector reads *.prom only"),
    ],
)
def test_mistakes_are_named(recipe: Path, override: str, expected: str) -> None:
    assert expected in refused(recipe, override)


def test_every_mistake_at_once(recipe: Path) -> None:
    message = refused(recipe, "train.seqlength=1", "optimizer.adam_beta1=2")
    assert "seqlength" in message and "adam_beta1" in message


def test_missing_field(recipe: Path) -> None:
    recipe.write_text(yaml.safe_dump({key: value for key, value in RECIPE.items() if key != "run_dir"}))
    assert "run_dir: required field is missing" in refused(recipe)


@pytest.mark.parametrize("content", ["a: [", "- 1", "just text", "a: 1\n\tb: 2", "\x00"])
def test_not_a_recipe(recipe: Path, content: str) -> None:
    recipe.write_text(content)
    refused(recipe)


def test_a_folder_or_nothing(tmp_path: Path) -> None:
    assert "folder" in refused(tmp_path)
    assert "not found" in refused(tmp_path / "absent.yaml")


def test_references_and_environment(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "/data")
    run = load_run(recipe, ["data.phases.0.path=${oc.env:DATA}/phases/1"])
    assert run.data.phases[0].path == Path("/data/phases/1")


@pytest.mark.parametrize(("processes", "fits"), [(1, True), (4, True), (3, False), (8, False)])
def test_world_size(recipe: Path, processes: int, fits: bool) -> None:
    run = load_run(recipe)
    if fits:
        check_world_size(run, processes)
    else:
        with pytest.raises(UserError, match="global_batch_size"):
            check_world_size(run, processes)


def test_virtual_stages_take_turns_in_groups_of_micro_batches(recipe: Path) -> None:
    pipeline = ["parallel.pipeline_model_parallel_size=2", "parallel.virtual_pipeline_model_parallel_size=2"]
    check_world_size(load_run(recipe, pipeline), 4)
    with pytest.raises(UserError, match=r"1 micro-batches a step .* multiple of pipeline_model_parallel_size 2"):
        check_world_size(load_run(recipe, pipeline), 8)


def test_schema_for_editors() -> None:
    schema = RunConfig.model_json_schema()
    assert "tensor_model_parallel_size" in str(schema)


def test_a_pipe_without_a_writer_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "train.yaml"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match=r"train\.yaml: is a pipe"):
        load_run(pipe)


def test_mappings_by_kind_of_weight(recipe: Path) -> None:
    with pytest.raises(
        UserError, match=r": optimizer\.lr_mult\.haed: input should be 'embedding', .*did you mean 'head'"
    ):
        load_run(recipe, ["optimizer.lr_mult.haed=1"])
    with pytest.raises(UserError, match=r": optimizer\.lr_mult: write its names below it, each with a value, not None"):
        load_run(recipe, ["optimizer.lr_mult=null"])
