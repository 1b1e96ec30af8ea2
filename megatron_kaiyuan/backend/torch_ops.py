"""What lies between the matrix products of a layer, in torch's operations: few passes over memory, few tensors saved.

torch differentiates an expression operation by operation, each with a pass and often a saved tensor of its own. These
functions know their derivative, save their inputs alone, and compute the rest again. Norms and rotations of half
precision are computed in FP32 and rounded once. All work on any device and in any precision.

Tensor suffixes: s sequence, b batch, n heads, d head size, h hidden, f ffn.
"""

from __future__ import annotations

from typing import Any

import torch


def rms_norm(input_h: torch.Tensor, weight_h: torch.Tensor, epsilon: float, dtype: torch.dtype) -> torch.Tensor:
    """`x / sqrt(mean(x^2) + epsilon) * weight` over the last dimension, in FP32 and rounded once to `dtype`."""
    if input_h.is_cuda and input_h.dtype == weight_h.dtype == dtype:
        # One kernel there, which saves the same.
        return torch.nn.functional.rms_norm(input_h, weight_h.shape, weight_h, epsilon)
    return _RmsNorm.apply(input_h, weight_h, epsilon, dtype)


def swiglu(gate_and_up_2f: torch.Tensor) -> torch.Tensor:
    """[..., 2f] to [..., f]: silu of the first half times the second. Source: arXiv 2002.05202."""
    return _Swiglu.apply(gate_and_up_2f)


def rotate(
    query_sbnd: torch.Tensor, key_sbnd: torch.Tensor, angles_s11d: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary position embedding of queries and keys, whose head's halves are turned against each other.

    Source: RoPE (arXiv 2104.09864) in the form of GPT-NeoX and Llama.

    Args:
        angles_s11d: FP32; both halves of the last dimension are equal.
    """
    return _Rotate.apply(query_sbnd, key_sbnd, angles_s11d)


def _at_least_fp32(tensor: torch.Tensor) -> torch.Tensor:
    # FP64 for tests of the gradient.
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input_h: torch.Tensor, weight_h: torch.Tensor, epsilon: float, dtype: torch.dtype
    ) -> torch.Tensor:
        exact_h = _at_least_fp32(input_h)
        scale_1 = torch.linalg.vector_norm(exact_h, dim=-1, keepdim=True).square_().div_(exact_h.size(-1))
        scale_1 = scale_1.add_(epsilon).rsqrt_()
        ctx.save_for_backward(input_h, weight_h, scale_1)
        return (exact_h * scale_1).mul_(weight_h).to(dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        input_h, weight_h, scale_1 = ctx.saved_tensors
        # Sums over rows depend on how they lie, and recomputed attention lays its gradients differently.
        gradient_h, exact_weight_h = _at_least_fp32(gradients[0].contiguous()), _at_least_fp32(weight_h)
        normed_h = _at_least_fp32(input_h) * scale_1
        product_h = gradient_h * normed_h
        of_weight_h = product_h.flatten(0, -2).sum(0).to(weight_h.dtype)
        along_1 = (product_h @ exact_weight_h).div_(input_h.size(-1)).unsqueeze(-1)
        # What changes the length of the input changes nothing behind the norm.
        of_input_h = torch.mul(gradient_h, exact_weight_h, out=product_h)
        of_input_h.addcmul_(normed_h, along_1, value=-1).mul_(scale_1)
        return of_input_h.to(input_h.dtype), of_weight_h, None, None


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_and_up_2f: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate_and_up_2f)
        gate_f, up_f = gate_and_up_2f.chunk(2, -1)
        return torch.nn.functional.silu(gate_f).mul_(up_f)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        (gate_and_up_2f,) = ctx.saved_tensors
        gate_f, up_f = gate_and_up_2f.chunk(2, -1)
        of_both_2f = torch.empty_like(gate_and_up_2f)
        of_gate_f, of_up_f = of_both_2f.chunk(2, -1)
        torch.mul(torch.nn.functional.silu(gate_f), gradients[0], out=of_up_f)
        torch.ops.aten.silu_backward.grad_input(gradients[0] * up_f, gate_f, grad_input=of_gate_f)
        return of_both_2f


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query_sbnd: torch.Tensor, key_sbnd: torch.Tensor, angles_s11d: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        ctx.save_for_backward(angles_s11d)
        return _turned((query_sbnd, key_sbnd), angles_s11d, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (angles_s11d,) = ctx.saved_tensors
        return *_turned(gradients, angles_s11d, -1), None


def _turned(
    tensors_sbnd: tuple[torch.Tensor, ...], angles_s11d: torch.Tensor, direction: int
) -> tuple[torch.Tensor, ...]:
    # In half precision a CPU's addcmul rounds once or twice, as memory lies, and recomputing would change bits.
    cosine_s11d, sine_s11 = angles_s11d.cos(), angles_s11d.chunk(2, -1)[0].sin()
    turned = []
    for tensor_sbnd in tensors_sbnd:
        exact_sbnd = _at_least_fp32(tensor_sbnd)
        first, second = exact_sbnd.chunk(2, -1)
        result_sbnd = exact_sbnd * cosine_s11d
        of_first, of_second = result_sbnd.chunk(2, -1)
        of_first.addcmul_(second, sine_s11, value=-direction)
        of_second.addcmul_(first, sine_s11, value=direction)
        turned.append(result_sbnd.to(tensor_sbnd.dtype))
    return tuple(turned)
