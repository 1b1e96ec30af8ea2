"""Cross-entropy under the soft cap and with z-loss: gradients in float64, the definition, and memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_kaiyuan.config import ModelConfig, ParallelConfig

COEFFICIENT = 0.01
CAPS = pytest.mark.parametrize("cap", [None, 2.0])


@pytest.fixture(params=[2, 1000], ids=["blocks", "one block"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Tokens of a block: the last of several is a shorter one."""
    from megatron_kaiyuan.backend import formulas

    monkeypatch.setattr(formulas, "block_rows", lambda elements, device: request.param)
    return request.param


def logits_and_labels(scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(5, 3, 7, generator=generator, dtype=torch.float64)
    return logits, torch.randint(7, (5, 3), generator=generator)


def capped(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    return logits if cap is None else cap * torch.tanh(logits / cap)


@CAPS
def test_gradients_in_float64(block: int, cap: float | None) -> None:
    """Of both outputs, through the cap where there is one, against central differences.

    torch's gradcheck goes back through one graph several times, but the first time overwrites what was saved.
    """
    from megatron_kaiyuan.model.loss import cross_entropy_and_log_z

    logits, labels = logits_and_labels()
    weights = torch.randn(2, *labels.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def outputs(logits: torch.Tensor) -> torch.Tensor:
        return torch.stack(cross_entropy_and_log_z(logits.clone(), labels, cap))

    def weighed(logits: torch.Tensor) -> torch.Tensor:
        return (weights * outputs(logits)).sum()

    leaf = logits.clone().requires_grad_()
    (found,) = torch.autograd.grad(weighed(leaf), leaf)
    steps = 1e-6 * torch.eye(logits.numel(), dtype=torch.float64).view(-1, *logits.shape)
    slopes = [(weighed(logits + step) - weighed(logits - step)) / 2e-6 for step in steps]
    loss, log_z = outputs(logits)
    torch.testing.assert_close(found.flatten(), torch.stack(slopes), rtol=1e-7, atol=1e-8)
    bounded = capped(logits, cap)
    torch.testing.assert_close(log_z, bounded.logsumexp(-1))
    expected = torch.nn.functional.cross_entropy(bounded.flatten(0, 1), labels.flatten(), reduction="none")
    torch.testing.assert_close(loss.flatten(), expected)


@CAPS
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float16", 2**-11), ("bfloat16", 2**-8)])
def test_lower_precisions_round_the_float64_gradient_once(
    block: int, dtype: str, tolerance: float, cap: float | None
) -> None:
    from megatron_kaiyuan.model.loss import cross_entropy_and_log_z

    exact, labels = logits_and_labels()
    leaf = exact.to(getattr(torch, dtype)).requires_grad_()
    exact = leaf.detach().double().requires_grad_()
    loss, _ = cross_entropy_and_log_z(leaf.clone(), labels, cap)
    assert loss.dtype == torch.float32
    loss.sum().backward()
    expected = torch.nn.functional.cross_entropy(capped(exact, cap).flatten(0, 1), labels.flatten(), reduction="none")
    expected.sum().backward()
    torch.testing.assert_close(loss.flatten().double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(leaf.grad.double(), exact.grad, rtol=tolerance, atol=1e-7)


def test_logits_far_out_of_the_range_of_exp_have_a_finite_loss() -> None:
    from megatron_kaiyuan.model.loss import cross_entropy_and_log_z

    logits = torch.tensor([[[-60000.0, 0.0, 60000.0]]], dtype=torch.float16)
    for cap, expected in ((None, (120000.0, 60000.0)), (30.0, (60.0, 30.0))):
        loss, log_z = cross_entropy_and_log_z(logits.clone(), torch.tensor([[0]]), cap)
        torch.testing.assert_close((loss.item(), log_z.item()), expected)


class LargestFp32(TorchDispatchMode):
    """Elements of the largest FP32 tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        made = function(*arguments, **(options or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32:
                self.elements = max(self.elements, tensor.numel())
        return made


@CAPS
def test_neither_pass_makes_fp32_logits(cap: float | None) -> None:
    from megatron_kaiyuan.model.loss import cross_entropy_and_log_z
    from megatron_kaiyuan.platform.blocks import block_elements

    width = 8192
    logits = torch.randn(4 * block_elements("cpu") // width, 1, width).half().requires_grad_()
    labels = torch.randint(width, logits.shape[:2])
    largest = LargestFp32()
    with largest:
        of_logits = logits.clone()
        cross_entropy_and_log_z(of_logits, labels, cap)[0].sum().backward()
    assert largest.elements == block_elements("cpu") == logits.numel() // 4
    # The gradient lies where the logits were.
    assert torch.equal(of_logits.detach(), logits.grad)


@CAPS
def test_the_network_reports_cross_entropy_and_follows_both(cap: float | None) -> None:
    from megatron_kaiyuan.model.build import build_model, transformer_config

    model = ModelConfig(preset="kaiyuan-tiny", num_layers=1, logits_soft_cap=cap)  # type: ignore[call-arg]
    torch.manual_seed(0)
    plain = build_model(model, transformer_config(model, ParallelConfig()))
    network = build_model(model, transformer_config(model, ParallelConfig()), z_loss=COEFFICIENT)
    network.load_state_dict(plain.state_dict())
    ids_bs = torch.randint(model.vocab_size, (2, 16), generator=torch.Generator().manual_seed(1))
    inputs, labels_bs = (ids_bs, torch.arange(16).expand(2, -1), None), ids_bs.roll(-1, 1)
    mask_bs = (ids_bs % 3 > 0).float()
    logits = plain(*inputs).flatten(0, 1)
    objective = torch.nn.functional.cross_entropy(logits, labels_bs.flatten(), reduction="none")
    objective = objective + COEFFICIENT * logits.logsumexp(-1).square()
    (objective * mask_bs.flatten()).mean().backward()
    expected = {name: parameter.grad for name, parameter in plain.named_parameters()}
    losses_bs = network(*inputs, labels=labels_bs)
    torch.testing.assert_close(losses_bs, plain(*inputs, labels=labels_bs), rtol=1e-6, atol=1e-6)
    (losses_bs * mask_bs).mean().backward()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-7, msg=name)
