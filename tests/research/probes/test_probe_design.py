"""What is asked, what is run, what it costs: without training anything."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from megatron_kaiyuan.config import load_run
from megatron_kaiyuan.data.indexed import IndexedCorpus
from megatron_kaiyuan.data.phase import Phase
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.research.probes.design import Design, make_design, split_for_seeds
from megatron_kaiyuan.research.probes.pages import plan_text
from megatron_kaiyuan.research.probes.parts import build
from megatron_kaiyuan.research.probes.request import read_request


def design(path: Path, *overrides: str, folder: Path = Path("not built")) -> Design:
    config, windows = read_request(path, overrides)
    windows = split_for_seeds(config, windows, folder)
    if folder.exists():
        build(windows)
    return make_design(config, windows)


def test_runs_are_alike_in_all_but_the_documents(probe_yaml: Path, tmp_path: Path) -> None:
    found = design(probe_yaml, "protocols=[small_lr,tuned]", folder=tmp_path)
    assert len(found.runs) == (1 + 3) * 3 * 2 and not found.shared_documents
    configs = [load_run(run.recipe, [*run.overrides, "run_dir=x"]) for run in found.runs]
    # Whole steps of what the smallest part holds; a schedule of the same length for all.
    smallest = min(Phase(part, check=None).tokens for window in found.windows for part in window.parts)
    assert found.tokens == found.steps * 512 and found.tokens < smallest <= found.tokens + 512
    assert {(config.train.train_tokens, config.optimizer.schedule_tokens) for config in configs} == {
        (found.tokens,) * 2
    }
    by_seed: dict[tuple, list] = {}
    for run, config in zip(found.runs, configs, strict=True):
        same = config.model_dump(exclude={"data": {"phases": {"__all__": {"path"}}}})
        by_seed.setdefault((run.labels["protocol"], run.labels["lr_factor"], run.labels["seed"]), []).append(same)
    assert all(one == group[0] for group in by_seed.values() for one in group)
    assert len(by_seed) == 4 * 2
    # A seed has a part of its own, and another initialisation.
    assert [run.labels["seed"] for run in found.runs[:2]] == [0, 1]
    assert [config.data.phases[0].path for config in configs[:2]] == list(found.windows[0].parts)
    assert configs[1].train.seed == configs[0].train.seed + 1
    rates = {run.labels["lr_factor"]: config.data.phases[0] for run, config in zip(found.runs, configs, strict=True)}
    assert {factor: phase.peak_lr for factor, phase in rates.items()} == pytest.approx(
        {0.1: 1e-3, 0.3: 3e-3, 1.0: 1e-2, 3.0: 3e-2}
    )
    assert all(phase.final_lr == pytest.approx(phase.peak_lr / 10) for phase in rates.values())


def test_a_rate_of_the_embedding_follows_the_factor(probe_yaml: Path, tmp_path: Path) -> None:
    values = yaml.safe_load(probe_yaml.read_text())
    network = yaml.safe_load(Path(values["recipe"]).read_text())
    values["recipe"] = str(tmp_path / "network.yaml")
    (tmp_path / "network.yaml").write_text(yaml.safe_dump({**network, "optimizer": {"decoupled_lr": 2e-2}}))
    (tmp_path / "probes.yaml").write_text(yaml.safe_dump(values))
    for run in design(tmp_path / "probes.yaml", "protocols=[small_lr,tuned]", folder=tmp_path / "parts").runs:
        config = load_run(run.recipe, [*run.overrides, "run_dir=x"])
        assert config.optimizer.decoupled_lr == pytest.approx(2 * config.data.phases[0].peak_lr)


def test_the_plan_tells_cost_and_power(probe_yaml: Path) -> None:
    found = design(probe_yaml)
    # By hand: 6 FLOPs for each weight of a matrix product, and causal attention, over tokens and a third of measuring.
    weights = 32 * (2 * 32 + 2 * 16 + 3 * 64) + 256 * 32
    held_out = sum(IndexedCorpus(prefix).num_tokens for prefix in found.config.held_out.values())
    by_hand = 6 * (weights + 32 * 64) * 6 * (found.tokens + held_out / 3)
    text = plan_text(found)
    assert "6 runs: 3 windows x 2 seeds x 1 learning rates (small_lr)" in text
    assert "% of the main run's" in text and "2 degrees of freedom" in text and "not knowledge" in text
    assert found.flops == pytest.approx(by_hand, rel=0.2)
    assert found.main_flops == pytest.approx(found.flops / 6 / (found.tokens + held_out / 3) * 1e7)


def test_a_window_that_all_seeds_share_and_a_mixture(probe_yaml: Path) -> None:
    content = yaml.safe_load(probe_yaml.read_text())
    folder = Path(content["windows"]).parent
    content["windows"] = [
        {"name": "top", "phases": [str(folder / "text_0-0.2")], "dataset": "text", "quantile": 0.0},
        {"name": "mixture", "phases": [str(folder / "text_0.3-0.5")]},
    ]
    path = probe_yaml.with_name("shared.yaml")
    path.write_text(yaml.safe_dump(content))
    found = design(path)
    assert found.shared_documents and len(found.runs) == 4
    assert "All seeds of a window saw the same documents" in plan_text(found)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train_tokens=1e9", "train_tokens"),
        ("train_tokens=9_000_000", "9,000,000 asked for, but .*text_.*_. holds"),
        ("train_tokens=100", "less than the 512 of one step"),
        ("seeds=1", "seeds"),
        ("seeds=100", "less than the 512 of one step"),
        ("held_out={mean: a}", "held_out 'mean'"),
        ("protocols=[tuned,tuned]", "one is named twice"),
        ("windows=[{name: a, phases: [p]}]", "one alone is compared with nothing"),
        ("windows=[{name: a, phases: [p]}, {name: a, phases: [q]}]", "two are called 'a'"),
        ("windows=[{name: a, phases: [p], quantile: 0.1}, {name: b, phases: [q]}]", "both a dataset and a quantile"),
        ("windows=[{name: a, phases: [p]}, {name: b, phases: [q, r]}]", "share documents and those of others do not"),
        ("windows=[{name: a, phases: [p, q]}, {name: b, phases: [q, r]}]; seeds=3", "has 2 phases for 3 seeds"),
        ("windows=[{name: a, phases: [p, q]}, {name: b, phases: [q, r]}]; share_documents=true", "share documents"),
        ("windows=missing.json", "missing.json: list of windows not found"),
        ("sed=3", "sed: unknown field; did you mean 'seeds'"),
    ],
)
def test_a_mistake_is_named(probe_yaml: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        design(probe_yaml, *override.split("; "))


def test_parts_of_a_window_are_its_documents_each_once(probe_yaml: Path, tmp_path: Path) -> None:
    config, windows = read_request(probe_yaml, ["seeds=3"])
    parts = split_for_seeds(config, windows, tmp_path)
    build(parts)
    for window, whole in zip(parts, windows, strict=True):
        assert len(window.parts) == 3 and len(whole.parts) == 1
        found = [documents(part) for part in window.parts]
        everything = sorted(document for part in found for document in part)
        assert len(set(everything)) == len(everything)
        # The builder ends a phase at its budget; parts together hold all that the window does.
        assert set(documents(whole.parts[0])) <= set(everything)
        # Of equal size, to one document.
        assert max(map(len, found)) - min(map(len, found)) <= 1


def documents(folder: Path) -> list[tuple[int, int]]:
    phase = Phase(folder, check=None)
    return [phase.document(number) for number in range(phase.documents)]
