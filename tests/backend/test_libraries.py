"""What computes each operation of a run, by device and by what is there."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from megatron_kaiyuan.backend.attention import masked_attention, torch_attention
from megatron_kaiyuan.backend.blocked import blocked_attention, blocked_masked_attention
from megatron_kaiyuan.backend.choose import choose
from megatron_kaiyuan.backend.libraries import torch_norm
from megatron_kaiyuan.backend.operations import swiglu
from megatron_kaiyuan.config import BackendConfig, ParallelConfig
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.platform.base import Platform
from megatron_kaiyuan.platform.cpu import CpuPlatform
from megatron_kaiyuan.platform.cuda import CudaPlatform
from megatron_kaiyuan.platform.npu import NpuPlatform


def implementations(platform: Platform, **wanted: Any) -> dict[str, str]:
    backend = choose(BackendConfig(**wanted), platform)
    return {operation: choice.implementation for operation, choice in backend.choices.items()}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The optional packages that are there: none, until a test adds some."""
    found: set[str] = set()
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: object() if name in found else None)
    return found


def test_a_cpu_and_an_npu_take_torch_by_themselves(installed: set[str]) -> None:
    assert set(implementations(NpuPlatform(mindspeed=False)).values()) == {"torch"}
    taken = implementations(CpuPlatform())
    assert taken.pop("document_attention") == "split" and set(taken.values()) == {"torch"}


def test_attention_is_ours_where_torch_has_no_fused_one(installed: set[str]) -> None:
    """And under Megatron's mask, which goes with that within documents."""
    platform = NpuPlatform(mindspeed=False)
    platform.fused_attention = False
    backend = choose(BackendConfig(), platform)
    assert (
        backend.choices["attention"].implementation == "blocked" == backend.choices["document_attention"].implementation
    )
    assert backend.attention is blocked_attention is backend.document_attention
    assert backend.masked_attention is blocked_masked_attention
    for operation in ("attention", "document_attention"):
        with pytest.raises(UserError, match=rf"^backend\.{operation}: torch does not run on this NPU; use auto$"):
            choose(BackendConfig(**{operation: "torch"}), platform)
    with pytest.raises(UserError, match=r"flash is for NVIDIA GPUs, and this is platform npu; use auto$"):
        choose(BackendConfig(attention="flash"), platform)
    platform.fused_attention = True
    named = choose(BackendConfig(attention="torch", document_attention="torch"), platform)
    assert named.attention is named.document_attention is torch_attention
    assert named.masked_attention is masked_attention
    assert choose(BackendConfig(attention="blocked"), CpuPlatform()).attention is blocked_attention


def test_the_norm_asks_for_the_device_and_not_for_is_cuda() -> None:
    """torch_npu makes is_cuda true of an NPU's tensors; torch's composite would save four times as much."""
    values = torch.ones(2, 4, dtype=torch.float16, requires_grad=True)

    class Claims(torch.Tensor):
        is_cuda = True

    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda part: saved.append(part.dtype) or part, lambda part: part):
        torch_norm(values.as_subclass(Claims), torch.ones(4, dtype=torch.float16), 1e-6, torch.float16)
    # The input, the weight and a factor a row.
    assert sorted(map(str, saved)) == ["torch.float16", "torch.float16", "torch.float32"]


def test_an_npu_takes_its_norm_where_it_agrees() -> None:
    platform = NpuPlatform(mindspeed=False)
    platform.fused["norm"] = lambda values, weight, epsilon: 2 * values * weight
    assert implementations(platform)["norm"] == "npu"
    norm = choose(BackendConfig(), platform).norm
    values, weight = torch.ones(2, 4, dtype=torch.float16), torch.ones(4, dtype=torch.float16)
    assert norm(values, weight, 1e-6, torch.float32).equal(torch.full((2, 4), 2.0))
    with pytest.raises(UserError, match=r"backend\.norm: npu is for platform npu; use auto or torch"):
        choose(BackendConfig(norm="npu"), CpuPlatform())


def test_a_gpu_takes_what_is_there_and_says_what_is_not(installed: set[str]) -> None:
    platform = CudaPlatform()
    platform.findings["weight_gradient"] = "fails with torch 2.6"
    choices = choose(BackendConfig(), platform).choices
    assert {choice.implementation for choice in choices.values()} == {"torch"}
    assert choices["swiglu"].why == (
        "liger is not installed (pip install liger-kernel); compiled needs Triton (pip install triton)"
    )
    assert choices["weight_gradient"].why == "fused fails with torch 2.6"
    installed.add("triton")
    del platform.findings["weight_gradient"]
    taken = implementations(platform)
    assert taken == {
        **dict.fromkeys(("norm", "swiglu", "rope", "loss"), "compiled"),
        "attention": "torch",
        "document_attention": "flex",
        "weight_gradient": "fused",
        "passes": "torch",
    }


def test_a_broken_library_is_not_there(installed: set[str]) -> None:
    installed.update(("liger_kernel", "triton"))
    # Its files are not.
    choice = choose(BackendConfig(), CudaPlatform()).choices["swiglu"]
    assert choice.implementation == "compiled"
    assert choice.why.startswith("liger cannot be used (No module named") and "knows 0.8.5" in choice.why


@pytest.mark.parametrize(
    ("operation", "named", "told"),
    [
        ("swiglu", "liger", "is for NVIDIA GPUs, and this is platform cpu"),
        ("attention", "cudnn", "is for NVIDIA GPUs, and this is platform cpu"),
        ("document_attention", "split", "is for CPUs, and this is platform cuda"),
        ("weight_gradient", "fused", "is for NVIDIA GPUs, and this is platform cpu"),
        ("passes", "cuda_graphs", "is nothing that platform cpu does"),
    ],
)
def test_what_is_named_and_not_there_is_refused(operation: str, named: str, told: str) -> None:
    with pytest.raises(UserError) as error:
        choose(BackendConfig(**{operation: named}), CudaPlatform() if told.endswith("cuda") else CpuPlatform())
    assert str(error.value) == f"backend.{operation}: {named} {told}; use auto or torch"


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="needs a C\\+\\+ compiler, and there is no no-such-compiler"):
        choose(BackendConfig(rope="compiled"), CpuPlatform())


def test_layouts_whose_passes_cannot_be_recorded_are_named() -> None:
    class Run:
        parallel = ParallelConfig(tensor_model_parallel_size=2, recompute_granularity="full")

        class optimizer:
            qk_clip_tau = None

    with pytest.raises(UserError) as error:
        choose(BackendConfig(passes="cuda_graphs"), CudaPlatform(), Run())  # type: ignore[arg-type]
    fields = "parallel.tensor_model_parallel_size and parallel.recompute_granularity"
    assert str(error.value) == f"backend.passes: cuda_graphs cannot be together with {fields}; use auto or torch"


def test_the_kernel_of_attention_is_the_chosen_one() -> None:
    backend = choose(BackendConfig(attention="flash"), CudaPlatform())
    assert isinstance(backend.attention, functools.partial)
    with backend.attention.keywords["kernel"]():
        assert torch.backends.cuda.flash_sdp_enabled() and not torch.backends.cuda.mem_efficient_sdp_enabled()


def test_compiled_operations_are_those_of_the_formulas() -> None:
    """One of them, the quickest to compile; the others have tests that are slow."""
    compiled = choose(BackendConfig(swiglu="compiled"), CpuPlatform()).swiglu
    values = torch.randn(4, 2, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(compiled(values), swiglu(values))
