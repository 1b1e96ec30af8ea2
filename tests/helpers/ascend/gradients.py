"""Gradients of a formula by autograd, below which operators are dispatched."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

_AUTOGRAD = torch._C.DispatchKeySet(torch._C.DispatchKey.AutogradCPU) | torch._C.DispatchKeySet(
    torch._C.DispatchKey.ADInplaceOrView
)


def gradients(
    formula: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor], gradient: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """The inputs' gradients for that of the formula's result, computed in FP32 and rounded once."""
    excluded = torch._C._dispatch_tls_local_exclude_set() - _AUTOGRAD
    with torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), excluded), torch.enable_grad():
        leaves = [part.detach().float().requires_grad_() for part in inputs]
        found = torch.autograd.grad(formula(*leaves), leaves, gradient.float())
    return tuple(part.to(given.dtype) for part, given in zip(found, inputs, strict=True))
