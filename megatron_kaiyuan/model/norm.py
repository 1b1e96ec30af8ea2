"""RMSNorm, and the layer whose sub-layers end in one.

Tensor suffixes: s sequence, b batch, h hidden, n heads, d head size.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint

from megatron_kaiyuan.backend.choose import TORCH
from megatron_kaiyuan.backend.libraries import Norm


class RMSNorm(torch.nn.RMSNorm):
    """`x / sqrt(mean(x^2) + eps) * weight` over the last dimension; half precision is computed in FP32.

    The output has the precision of the gain, or `output_dtype`. Where the input's is another it is computed in FP32 and
    rounded once.

    With sequence parallelism each tensor-parallel rank sees other tokens, so that the gradient of the
    weight is summed over them: megatron-core does that for parameters that say `sequence_parallel`.
    """

    output_dtype: torch.dtype | None = None

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, kernel: Norm = TORCH.norm, **_: Any
    ):
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        self._kernel, self._epsilon = kernel, eps

    def forward(self, input_h: torch.Tensor) -> torch.Tensor:
        """[..., h] to [..., h]."""
        return self._kernel(input_h, self.weight, self._epsilon, self.output_dtype or self.weight.dtype)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[tuple[int, int, int], ...] = (), metadata: Any = None
    ) -> dict[str, Any]:
        """The gain, whole on every tensor-parallel rank. megatron-core's MLP asks each of its modules for this."""
        own = self.state_dict(prefix="", keep_vars=True)
        return make_sharded_tensors_for_checkpoint(own, prefix, {}, sharded_offsets)


def norm_embedding(model: GPTModel, norm: ModuleSpec) -> None:
    """Close a GPTModel's embedding by a norm, as BLOOM does (arXiv 2211.05100).

    Its gain is `embedding.norm.weight`, 1 at first. A stage without the embedding is left alone.
    """
    if model.pre_process:
        embedding = model.embedding
        embedding.norm = _build(norm, model.config)
        embedding.norm.output_dtype = torch.float32 if model.config.fp32_residual_connection else None
        embedding.register_forward_hook(lambda module, inputs, output_sbh: module.norm(output_sbh))


class SandwichLayer(TransformerLayer):
    """A layer whose sub-layers, attention and MLP, each end in a norm (sandwich norm).

    megatron-core has no slot for a norm after a sub-layer. This layer turns `x + F(norm(x))` into
    `x + post_norm(F(norm(x)))`, the form of arXiv 2512.07612. What a sub-layer adds to the residual stream then has
    RMS `post_norm.weight`, however large the weights grow.
    """

    def __init__(self, config: TransformerConfig, *args: Any, norm: ModuleSpec, **options: Any):
        super().__init__(config, *args, **options)
        if config.add_bias_linear:
            raise ValueError("SandwichLayer has no place for a bias after a norm: set add_bias_linear=False")
        for sub_layer, last in ((self.self_attention, "linear_proj"), (self.mlp, "linear_fc2")):
            close(sub_layer, last, _build(norm, config))


def _build(norm: ModuleSpec, config: TransformerConfig) -> torch.nn.Module:
    """A norm of the residual stream's width."""
    return build_module(norm, config=config, hidden_size=config.hidden_size, eps=config.layernorm_epsilon)


def close(sub_layer: torch.nn.Module, last: str, norm: torch.nn.Module) -> None:
    """Let a sub-layer end in a norm: of all that it gives, once, after its parts are summed.

    Its gain is `post_norm.weight` in the sub-layer.

    Args:
        sub_layer: gives ([s, b, h], no bias).
        last: its last linear, which the norm follows in the order of the parameters.
    """
    names = [name for name, _ in sub_layer.named_children()]
    sub_layer.post_norm = norm
    # The order of the parameters is that in which the norm of all gradients is summed, and decides its last bits.
    for name in names[names.index(last) + 1 :]:
        later = getattr(sub_layer, name)
        delattr(sub_layer, name)
        setattr(sub_layer, name, later)
    sub_layer.register_forward_hook(lambda module, inputs, output: (module.post_norm(output[0]), None))
