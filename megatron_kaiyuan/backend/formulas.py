"""What lies between the matrix products: values and derivatives as functions of tensors, without autograd.

Few passes over memory where torch executes them one operation at a time, and one or two kernels where torch compiles
them (`COMPILED`): the same text serves both. Norms and rotations of half precision are computed in FP32 and rounded
once. All work on any device and in any precision.

Tensor suffixes: s sequence, b batch, n heads, d head size, h hidden, f ffn, t tokens, v vocabulary of
a rank, 1 a dimension of size one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

import torch

from megatron_kaiyuan.platform.blocks import block_rows


@dataclass(frozen=True)
class Formulas:
    """The functions of this file, executed one way or another."""

    rms_norm: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    rms_norm_backward: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    swiglu: Callable[..., torch.Tensor]
    swiglu_backward: Callable[..., torch.Tensor]
    rotate: Callable[..., tuple[torch.Tensor, ...]]
    loss_parts: Callable[..., tuple[torch.Tensor, ...]]
    loss_gradient_: Callable[..., None]


def rms_norm(
    input_h: torch.Tensor, weight_h: torch.Tensor, epsilon: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """`x / sqrt(mean(x^2) + epsilon) * weight` over the last dimension, and the factor of each row."""
    exact_h = _at_least_fp32(input_h)
    scale_1 = torch.linalg.vector_norm(exact_h, dim=-1, keepdim=True).square_().div_(exact_h.size(-1))
    scale_1 = scale_1.add_(epsilon).rsqrt_()
    return (exact_h * scale_1).mul_(weight_h).to(dtype), scale_1


def rms_norm_backward(
    gradient_h: torch.Tensor, input_h: torch.Tensor, weight_h: torch.Tensor, scale_1: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the input and of the weight, from that of the output."""
    gradient_h, exact_weight_h = _at_least_fp32(gradient_h), _at_least_fp32(weight_h)
    normed_h = _at_least_fp32(input_h) * scale_1
    product_h = gradient_h * normed_h
    of_weight_h = product_h.flatten(0, -2).sum(0).to(weight_h.dtype)
    # What changes the length of the input changes nothing after the norm. A sum, and no product with the weight: a chip
    # may round that product's inputs to FP16, and for a compiler it would be a kernel of its own.
    if torch.compiler.is_compiling():
        along_1 = (product_h * exact_weight_h).sum(-1, keepdim=True) / input_h.size(-1)
        of_input_h = (gradient_h * exact_weight_h - normed_h * along_1) * scale_1
        return of_input_h.to(input_h.dtype), of_weight_h
    along_1 = product_h.mul_(exact_weight_h).sum(-1, keepdim=True).div_(input_h.size(-1))
    of_input_h = torch.mul(gradient_h, exact_weight_h, out=product_h)
    of_input_h.addcmul_(normed_h, along_1, value=-1).mul_(scale_1)
    return of_input_h.to(input_h.dtype), of_weight_h


def swiglu(gate_and_up_2f: torch.Tensor) -> torch.Tensor:
    """[..., 2f] to [..., f]: silu of the first half times the second. Source: arXiv 2002.05202."""
    gate_f, up_f = gate_and_up_2f.chunk(2, -1)
    return torch.nn.functional.silu(gate_f).mul_(up_f)


def swiglu_backward(gradient_f: torch.Tensor, gate_and_up_2f: torch.Tensor) -> torch.Tensor:
    """[..., 2f], of both halves."""
    gate_f, up_f = gate_and_up_2f.chunk(2, -1)
    if torch.compiler.is_compiling():
        of_gate_f = torch.ops.aten.silu_backward(gradient_f * up_f, gate_f)
        return torch.cat((of_gate_f, torch.nn.functional.silu(gate_f) * gradient_f), -1)
    of_both_2f = torch.empty_like(gate_and_up_2f)
    of_gate_f, of_up_f = of_both_2f.chunk(2, -1)
    torch.mul(torch.nn.functional.silu(gate_f), gradient_f, out=of_up_f)
    torch.ops.aten.silu_backward.grad_input(gradient_f * up_f, gate_f, grad_input=of_gate_f)
    return of_both_2f


def rotate(
    tensors_sbnd: tuple[torch.Tensor, ...], cosine_s11d: torch.Tensor, sine_s11d: torch.Tensor, direction: int
) -> tuple[torch.Tensor, ...]:
    """Rotary position embedding, the halves of each head turned against each other; -1 turns back.

    Source: RoPE (arXiv 2104.09864) in the form of GPT-NeoX and Llama.

    Args:
        cosine_s11d: of the angles, in FP32; both halves of the last dimension are equal. `sine_s11d` likewise.
    """
    # In half precision a CPU's addcmul rounds once or twice, as memory lies, and recomputing would change bits.
    sine_s11 = sine_s11d.chunk(2, -1)[0]
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


def loss_parts(logits_tv: torch.Tensor, label_t1: torch.Tensor, cap: float | None) -> tuple[torch.Tensor, ...]:
    """Of capped logits: the largest of each row, the sum of exponentials below it, and the one at the label; [t].

    FP32 logits are capped in their place, so that `loss_gradient_` need not do it again.
    """
    bounded_tv = _cap_in_place(logits_tv, cap) if _stay_capped(logits_tv) else _bounded(logits_tv, cap)
    peak_t = bounded_tv.amax(-1)
    sum_t = (bounded_tv - peak_t.unsqueeze(-1)).exp_().sum(-1)
    return peak_t, sum_t, bounded_tv.gather(-1, label_t1).squeeze(-1)


def loss_gradient_(
    logits_tv: torch.Tensor,
    log_z_t: torch.Tensor,
    of_softmax_t1: torch.Tensor,
    label_t1: torch.Tensor,
    of_label_t1: torch.Tensor,
    cap: float | None,
) -> None:
    """Write over logits `of_softmax * softmax + of_label` at the label, taken back through the cap."""
    bounded_tv = logits_tv if _stay_capped(logits_tv) else _bounded(logits_tv, cap)
    gradient_tv = (bounded_tv - log_z_t.unsqueeze(-1)).exp_().mul_(of_softmax_t1)
    if torch.compiler.is_compiling():
        # A scatter would end the kernel.
        columns_v = torch.arange(logits_tv.size(-1), device=logits_tv.device)
        gradient_tv = gradient_tv + torch.where(columns_v == label_t1, of_label_t1, 0)
    else:
        gradient_tv.scatter_add_(-1, label_t1, of_label_t1)
    if cap is not None:
        gradient_tv = torch.ops.aten.tanh_backward(gradient_tv, bounded_tv.div_(cap))
    logits_tv.copy_(gradient_tv)


def _stay_capped(logits_tv: torch.Tensor) -> bool:
    # Half precision would round them once more.
    return logits_tv.dtype == torch.promote_types(logits_tv.dtype, torch.float32)


def _cap_in_place(logits_tv: torch.Tensor, cap: float | None) -> torch.Tensor:
    return logits_tv if cap is None else logits_tv.div_(cap).tanh_().mul_(cap)


def _bounded(logits_tv: torch.Tensor, cap: float | None) -> torch.Tensor:
    exact_tv = _at_least_fp32(logits_tv)
    return exact_tv if cap is None else (exact_tv / cap).tanh_().mul_(cap)


def _at_least_fp32(tensor: torch.Tensor) -> torch.Tensor:
    # FP64 for tests of the gradient.
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _in_blocks(formula: Callable[..., Any]) -> Callable[..., Any]:
    """A formula of the loss, whose arguments have a row for each token and end with the cap, on some rows at a time."""

    def apply(logits_tv: torch.Tensor, *rows_and_cap: Any) -> Any:
        *rows, cap = rows_and_cap
        step = block_rows(logits_tv.size(-1), logits_tv.device.type)
        blocks = [slice(start, start + step) for start in range(0, len(logits_tv), step)]
        parts = [formula(logits_tv[block], *(row[block] for row in rows), cap) for block in blocks]
        return None if parts[0] is None else tuple(torch.cat(part) for part in zip(*parts, strict=True))

    return apply


# One operation after the other, in torch's own kernels; of logits, a block of tokens at a time.
EAGER = Formulas(
    rms_norm,
    rms_norm_backward,
    swiglu,
    swiglu_backward,
    rotate,
    _in_blocks(loss_parts),
    _in_blocks(loss_gradient_),
)


@cache
def compiled() -> Formulas:
    """Each formula as a kernel or two that torch compiles when a shape first comes up (Triton's; on a CPU C++)."""
    import torch._dynamo

    # For each formula, in one process; the default of 8 is met by a few shapes in three precisions.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)

    def compile_one(formula: Callable[..., Any]) -> Any:
        # A kernel for each shape: those of a run are few, and one for all of them is slower.
        return torch.compile(formula, dynamic=False, fullgraph=True)

    whole = replace(EAGER, loss_parts=loss_parts, loss_gradient_=loss_gradient_)
    return Formulas(**{field.name: compile_one(getattr(whole, field.name)) for field in fields(Formulas)})
