"""Export, and back: every format and precision returns the weights bit for bit. In one process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_kaiyuan import platform
from megatron_kaiyuan.config import ModelConfig, ParallelConfig
from megatron_kaiyuan.errors import UserError
from tests.helpers.references.network import SHAPE, numbered, random_weights

Tensors = dict[str, torch.Tensor]
EMBEDDING_NORM = "embedding.norm.weight"


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    device = platform.activate("cpu")
    from megatron_kaiyuan.cluster.groups import single_process

    with single_process(device):
        yield


def weights_of(model: ModelConfig, dtype: torch.dtype) -> Tensors:
    """Random weights with gains far from one, of which FP32 loses bits when one is taken away."""
    weights = random_weights(model, seed=1)
    for name in weights:
        if "post_norm" in name:
            weights[name] *= 0.01
    if model.embedding_norm:
        weights[EMBEDDING_NORM] = torch.rand(model.hidden_size) + 0.5
    if not model.qk_layernorm:
        weights = {name: tensor for name, tensor in weights.items() if not name.split(".")[-2].endswith("_layernorm")}
        weights |= {name: t for name, t in random_weights(model, seed=1).items() if "input_layernorm" in name}
        weights |= {name: t for name, t in random_weights(model, seed=1).items() if "pre_mlp_layernorm" in name}
        weights |= {name: t for name, t in random_weights(model, seed=1).items() if "final_layernorm" in name}
    return {name: tensor.to(dtype) for name, tensor in weights.items()}


def exported(folder: Path, model: ModelConfig, weights: Tensors, **form: Any) -> Path:
    from megatron_kaiyuan.export.huggingface import Form, export_model

    return export_model(weights, model, folder, None, form=Form(**form))


def imported(folder: Path, output: Path) -> Tensors:
    from megatron_kaiyuan.checkpoint.imported import import_folder
    from megatron_kaiyuan.checkpoint.load import load_weights

    import_folder(folder, output)
    return load_weights(output)


def assert_same_bits(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name].view(torch.uint8), tensor.contiguous().view(torch.uint8)), name


ADDITIONS = {"embedding_norm": True, "fp32_residual": True, "fp32_head": True, "qk_layernorm": False}
PLAIN = {"sandwich_norm": False, "logits_soft_cap": None}
CASES: list[tuple[str, dict[str, Any], str, str]] = [
    (written_as, changes, of, stored)
    for written_as, changes in (("kaiyuan", {}), ("kaiyuan", ADDITIONS), ("qwen3", PLAIN))
    for of, stored in (("float32", "float32"), ("float16", "float16"), ("bfloat16", "bfloat16"), ("float16", "float32"))
] + [
    ("gemma3", {"hidden_size": hidden}, of, "float32")
    for hidden in (64, 96)  # sqrt(64) is a power of two
    for of in ("float32", "float16", "bfloat16")
]


@pytest.mark.parametrize(("written_as", "changes", "of", "stored"), CASES)
def test_weights_come_back_bit_for_bit(
    written_as: str, changes: dict[str, Any], of: str, stored: str, tmp_path: Path
) -> None:
    model = ModelConfig(**{**SHAPE, **changes})
    weights = weights_of(model, getattr(torch, of))
    folder = exported(tmp_path / "model", model, weights, format=written_as, dtype=stored, max_shard_bytes=50_000)
    back = imported(folder, tmp_path / "back")
    assert_same_bits(back, weights)
    # And once more: what was imported is exported as before.
    again = exported(tmp_path / "again", model, back, format=written_as, dtype=stored, max_shard_bytes=50_000)
    for path in folder.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name


def test_rounding_is_all_that_is_lost(tmp_path: Path) -> None:
    model = ModelConfig(**SHAPE)
    weights = weights_of(model, torch.float32)
    folder = exported(tmp_path / "model", model, weights, format="kaiyuan", dtype="bfloat16")
    back = imported(folder, tmp_path / "back")
    assert all(torch.equal(back[name], tensor.bfloat16().float()) for name, tensor in weights.items())


def test_without_its_manifest_gemma3_is_a_rounding_away_and_the_vocabulary_is_the_padded_one(tmp_path: Path) -> None:
    from megatron_kaiyuan.checkpoint.load import load_common, model_of

    model = ModelConfig(**{**SHAPE, "hidden_size": 96})
    weights = weights_of(model, torch.float32)
    folder = exported(tmp_path / "model", model, weights)
    assert (folder / "remainders.kaiyuan").is_file()
    (folder / "manifest.json").unlink()
    (folder / "remainders.kaiyuan").unlink()
    back = imported(folder, tmp_path / "back")
    errors = [(back[name] - tensor).abs().max().item() for name, tensor in weights.items()]
    print(f"largest difference without remainders {max(errors):.2e}")
    assert 0 < max(errors) < 2.0**-22
    run = load_common(tmp_path / "back")["run"]
    assert model_of(tmp_path / "back", run).vocab_size == model.padded_vocab_size == 384


@pytest.mark.parametrize(
    ("written_as", "changes"), [("kaiyuan", ADDITIONS), ("gemma3", {"hidden_size": 96}), ("qwen3", PLAIN)]
)
def test_a_run_starts_from_every_folder_with_the_weights_as_they_were(
    written_as: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    from megatron_kaiyuan.checkpoint.initial import initialise
    from megatron_kaiyuan.model.build import Network, build_model, transformer_config

    model = ModelConfig(**{**SHAPE, **changes})
    weights = weights_of(model, torch.float32)
    folder = exported(tmp_path / "model", model, weights, format=written_as)
    network = build_model(model, transformer_config(model, ParallelConfig()))
    assert initialise(Network([network]), model, folder) == []
    found = {name: parameter.detach() for name, parameter in network.named_parameters()}
    assert_same_bits(found, {name: tensor.contiguous() for name, tensor in numbered(weights).items()})


def test_an_import_is_evaluated_and_exported_like_any_checkpoint(tmp_path: Path) -> None:
    from megatron_kaiyuan.export.run import export_checkpoint

    model = ModelConfig(**SHAPE)
    folder = exported(tmp_path / "model", model, weights_of(model, torch.float32), format="kaiyuan")
    imported(folder, tmp_path / "back")
    line = export_checkpoint(tmp_path / "back", tmp_path / "again", None)
    assert "import of a kaiyuan folder: " in line and "(gemma3, float32)" in line
    assert float(line.rsplit(" ", 1)[1]) < 1e-4


def test_folders_of_strangers_are_one_line(tmp_path: Path) -> None:
    model = ModelConfig(**SHAPE)
    whole = exported(tmp_path / "whole", model, weights_of(model, torch.float32), max_shard_bytes=50_000)

    def damaged(name: str) -> Path:
        return Path(shutil.copytree(whole, tmp_path / name))

    def refused(folder: Path, message: str) -> None:
        with pytest.raises(UserError, match=message) as caught:
            imported(folder, tmp_path / "never")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "never").exists()

    refused(tmp_path / "absent", "no Hugging Face folder here")
    folder = damaged("missing")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    refused(folder, rf"{shard.name} is missing, though model\.safetensors\.index\.json names it")
    folder = damaged("flipped")
    shard = sorted(folder.glob("*.safetensors"))[1]
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    refused(folder, rf"{shard.name}: is not the file that was exported")
    folder = damaged("edited")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    refused(folder, r"config\.json: is not the file that was exported")
    for change, message in (
        ({"model_type": "llama"}, "model_type llama, but only kaiyuan, gemma3_text, qwen3"),
        ({"hidden_activation": "gelu_pytorch_tanh"}, "activation 'gelu_pytorch_tanh'"),
        ({"layer_types": ["sliding_attention"] * 3}, "layers of 'sliding_attention'"),
        ({"query_pre_attn_scalar": 256}, "query_pre_attn_scalar 256"),
        ({"num_hidden_layers": 4}, "holds no weight 'model.layers.3"),
        ({"head_dim": "large"}, "head_dim"),
        ({"intermediate_size": 100}, "weights for decoder.layers.0.mlp.linear_fc1.weight make"),
    ):
        folder = damaged("foreign")
        (folder / "manifest.json").unlink()
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        refused(folder, message)
        shutil.rmtree(folder)


def test_an_import_is_replaced_by_the_same_one_only(tmp_path: Path) -> None:
    from megatron_kaiyuan.checkpoint.imported import import_folder

    model = ModelConfig(**SHAPE)
    first = exported(tmp_path / "first", model, weights_of(model, torch.float32))
    second = exported(tmp_path / "second", model, weights_of(model, torch.float32), format="kaiyuan")
    import_folder(first, tmp_path / "out")
    import_folder(first, tmp_path / "out")
    with pytest.raises(UserError, match="holds an imported checkpoint already, made from something else"):
        import_folder(second, tmp_path / "out")
    import_folder(second, tmp_path / "out", force=True)
