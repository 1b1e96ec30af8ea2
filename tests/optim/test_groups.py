"""Parameter groups, and a step over several optimizers, in one process."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

from megatron_kaiyuan import optimizers, platform
from megatron_kaiyuan.config import RunConfig, parse
from megatron_kaiyuan.errors import UserError

SHAPE = {"num_layers": 2, "hidden_size": 32, "ffn_hidden_size": 48, "num_attention_heads": 2, "num_query_groups": 1}
MODEL = {**SHAPE, "kv_channels": 16, "vocab_size": 100, "max_position_embeddings": 32}
GAINS = ("embedding_norm", "norms", "final_norm")


def recipe(model: dict[str, Any] | None = None, precision: str = "fp32", plain: bool = False, **options: Any) -> Any:
    content = {
        "run_dir": "unused",
        "platform": "cpu",
        "model": MODEL | (model or {}),
        "parallel": {"use_distributed_optimizer": not plain},
        "data": {"phases": [{"path": "unused", "peak_lr": 2e-3}, {"path": "unused", "peak_lr": 4e-3}]},
        "train": {"seq_length": 32, "micro_batch_size": 1, "global_batch_size": 1, "precision": precision},
        "optimizer": options,
    }
    return parse(RunConfig, content, "test")


@pytest.fixture(scope="module")
def one_process() -> Iterator[Any]:
    device = platform.activate("cpu")
    from megatron_kaiyuan.cluster.groups import single_process

    with single_process(device):
        yield device


@pytest.mark.parametrize("model", [{}, {"embedding_norm": True}, {"sandwich_norm": False, "qk_layernorm": False}])
def test_by_default_they_are_megatron_cores(model: dict[str, Any], one_process: Any) -> None:
    """The same parameters in the same order: what is summed over them adds in that order."""
    from megatron.core.optimizer import OptimizerConfig, _get_param_groups

    from megatron_kaiyuan.train.start import build_state

    state = build_state(recipe(model, plain=True), one_process)
    expected = _get_param_groups(state.models, OptimizerConfig(lr=0.0, min_lr=0.0), None)
    found = state.optimizer.param_groups
    assert [group["wd_mult"] for group in found] == [group["wd_mult"] for group in expected] == [1.0, 0.0]
    assert [[*map(id, group["params"])] for group in found] == [[*map(id, group["params"])] for group in expected]


def test_each_rule_is_a_group_of_all_its_kinds() -> None:
    options: dict[str, Any] = {"decoupled_lr": 1e-3, "lr_mult": {"qkv": 0.5}, "wd_mult": {"embedding": 0, "norms": 1}}
    run = recipe({"embedding_norm": True}, **options)
    ((name, groups),) = optimizers.parameter_groups(run)
    assert name == "adam"
    assert {group.kinds: (group.rule.lr_mult, group.rule.wd_mult) for group in groups} == {
        ("proj", "fc1", "fc2", "norms"): (1, 1),
        ("qkv",): (0.5, 1),
        ("embedding",): (0.25, 0),
        ("head",): (0.25, 1),
        ("embedding_norm", "final_norm"): (1, 0),
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr_mult": {"router": 1}}, "optimizer.lr_mult.router"),
        ({"wd_mult": {"qkv": -1}}, "optimizer.wd_mult.qkv"),
        ({"lr_mult": {"embedding_norm": 2}}, "optimizer.lr_mult.embedding_norm is of no weight"),
        ({"lr_mult": {"head": 2}, "decoupled_lr": 1e-3}, "lr_mult.head both set the learning rate of head"),
    ],
)
def test_a_rule_that_would_do_nothing_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipe(**options)


def test_epsilon_is_the_recipes_times_the_rules(one_process: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_kaiyuan.train.start import build_state

    rule = optimizers.UpdateRule("adam", eps_mult=0.5)
    run = recipe(adam_eps=1e-6)
    same_for_all = dict.fromkeys(optimizers.rules(run), rule)
    monkeypatch.setattr(optimizers, "rules", lambda run: same_for_all)
    state = build_state(run, one_process)
    assert [group["eps"] for group in state.optimizer.param_groups] == [5e-7]


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("where", ["first", "last"])
def test_an_overflow_in_one_optimizer_is_one_of_the_step(
    where: str, plain: bool, one_process: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one scale is halved once; without it the norm is that of all gradients."""
    from megatron_kaiyuan.optim.algorithms import ALGORITHMS
    from megatron_kaiyuan.optim.update import measure_gradients
    from megatron_kaiyuan.train.start import build_state

    rules = optimizers.rules(recipe())
    second = {kind: optimizers.UpdateRule("second" if kind in GAINS else "adam") for kind in rules}
    monkeypatch.setitem(optimizers.STATES, "second", optimizers.STATES["adam"])
    monkeypatch.setitem(ALGORITHMS, "second", ALGORITHMS["adam"])
    monkeypatch.setattr(optimizers, "rules", lambda run: second)
    run = recipe(precision="fp16", plain=plain, initial_loss_scale=1024, hysteresis=1)
    optimizer, parameters = (state := build_state(run, one_process)).optimizer, [*state.network.parameters()]
    assert len(optimizer.chained_optimizers) == 2
    for parameter in parameters:
        parameter.main_grad.fill_(1024.0)  # type: ignore[attr-defined]
    overflowed, norm = measure_gradients(optimizer, overflowed=False)
    assert not overflowed and norm == pytest.approx(math.sqrt(sum(one.numel() for one in parameters)), rel=1e-6)
    owner = optimizer.chained_optimizers[0 if where == "first" else 1]
    kinds = {kind for group in owner.param_groups for kind in group["kinds"]}
    kind_of = {id(one): name for name, one in state.network.chunks[0].named_parameters()}
    inside = next(one for one in parameters if ("norm" in kind_of[id(one)]) == bool(kinds & {*GAINS}))
    inside.main_grad.view(-1)[-1] = math.inf  # type: ignore[attr-defined]
    overflowed, norm = measure_gradients(optimizer, overflowed=False)
    assert overflowed and math.isnan(norm)
    assert [float(part.grad_scaler.scale) for part in optimizer.chained_optimizers] == [512.0, 512.0]
    assert measure_gradients(optimizer, overflowed=True)[0] and float(optimizer.get_loss_scale()) == 256.0


def test_the_listed_states_are_those_that_are_kept(one_process: Any) -> None:
    from megatron_kaiyuan.optim.algorithms import ALGORITHMS
    from megatron_kaiyuan.train.start import build_state

    assert ALGORITHMS.keys() == optimizers.STATES.keys()
    for part in build_state(recipe(), one_process).optimizer.chained_optimizers:
        (name,) = {group["optimizer"] for group in part.param_groups}
        assert {tuple(state) for state in part.optimizer.state.values()} == {optimizers.STATES[name]}
