"""Cross-entropy with z-loss and under the soft cap: gradients in float64, and the objective by its definition."""

from __future__ import annotations

import pytest
import torch

from megatron_kaiyuan.config import ModelConfig, ParallelConfig

COEFFICIENT = 0.01


def logits_and_labels(scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(5, 2, 7, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), torch.randint(7, (5, 2), generator=generator)


@pytest.mark.parametrize("cap", [None, 2.0])
def test_gradients_in_float64(cap: float | None) -> None:
    """Of both outputs, through the cap where there is one, against central differences.

    torch's gradcheck goes back through one graph several times, but the first time overwrites what was saved.
    """
    from megatron_kaiyuan.model.head import soft_cap
    from megatron_kaiyuan.model.z_loss import cross_entropy_and_log_z

    logits, labels = logits_and_labels()
    weights = torch.randn(2, *labels.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def outputs(logits: torch.Tensor) -> torch.Tensor:
        return torch.stack(cross_entropy_and_log_z(logits.clone() if cap is None else soft_cap(logits, cap), labels))

    def weighed(logits: torch.Tensor) -> torch.Tensor:
        return (weights * outputs(logits)).sum()

    (found,) = torch.autograd.grad(weighed(logits), logits)
    steps = 1e-6 * torch.eye(logits.numel(), dtype=torch.float64).view(-1, *logits.shape)
    with torch.no_grad():
        slopes = [(weighed(logits + step) - weighed(logits - step)) / 2e-6 for step in steps]
        loss, log_z = outputs(logits)
    torch.testing.assert_close(found.flatten(), torch.stack(slopes), rtol=1e-7, atol=1e-8)
    bounded = logits.detach() if cap is None else cap * torch.tanh(logits.detach() / cap)
    torch.testing.assert_close(log_z, bounded.logsumexp(-1))
    expected = torch.nn.functional.cross_entropy(bounded.flatten(0, 1), labels.flatten(), reduction="none")
    torch.testing.assert_close(loss.flatten(), expected)


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_megatrons_cross_entropy_has_the_float64_gradient(dtype: torch.dtype, cap: float | None) -> None:
    """What runs without z-loss. megatron-core computes in FP32 whatever it is given: no finite differences there."""
    from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

    from megatron_kaiyuan.model.head import soft_cap

    exact, labels = logits_and_labels()
    logits = exact.detach().to(dtype).requires_grad_()
    exact.data.copy_(logits)
    vocab_parallel_cross_entropy(logits.clone() if cap is None else soft_cap(logits, cap), labels).sum().backward()
    bounded = exact if cap is None else cap * torch.tanh(exact / cap)
    torch.nn.functional.cross_entropy(bounded.flatten(0, 1), labels.flatten(), reduction="sum").backward()
    tolerance = 1e-6 if dtype == torch.float32 else 2**-11
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("cap", [None, 2.0])
def test_the_network_reports_cross_entropy_and_follows_both(cap: float | None) -> None:
    from megatron_kaiyuan.model.build import build_model, transformer_config
    from megatron_kaiyuan.model.z_loss import add_z_loss

    model = ModelConfig(preset="kaiyuan-tiny", num_layers=1, logits_soft_cap=cap)  # type: ignore[call-arg]
    torch.manual_seed(0)
    network = build_model(model, transformer_config(model, ParallelConfig()))
    ids_bs = torch.randint(model.vocab_size, (2, 16), generator=torch.Generator().manual_seed(1))
    inputs, labels_bs = (ids_bs, torch.arange(16).expand(2, -1), None), ids_bs.roll(-1, 1)
    mask_bs = (ids_bs % 3 > 0).float()
    plain_bs = network(*inputs, labels=labels_bs).detach()
    logits = network(*inputs).flatten(0, 1)
    objective = torch.nn.functional.cross_entropy(logits, labels_bs.flatten(), reduction="none")
    objective = objective + COEFFICIENT * logits.logsumexp(-1).square()
    (objective * mask_bs.flatten()).mean().backward()
    expected = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}
    network.zero_grad()
    add_z_loss(network, COEFFICIENT)
    losses_bs = network(*inputs, labels=labels_bs)
    torch.testing.assert_close(losses_bs.detach(), plain_bs, rtol=1e-6, atol=1e-6)
    (losses_bs * mask_bs).mean().backward()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-7, msg=name)
