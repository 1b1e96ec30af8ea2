"""RMSNorm, and the norm that closes a sub-layer.

Tensor suffixes: s sequence, b batch, h hidden, n heads, d head size.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel.layers import RowParallelLinear
from megatron.core.transformer.transformer_config import TransformerConfig

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


def norm_embedding(model: GPTModel, kernel: Norm = TORCH.norm) -> None:
    """Close a GPTModel's embedding by an RMSNorm, as BLOOM does (arXiv 2211.05100) with a LayerNorm.

    Its gain is `embedding.norm.weight`, 1 at first. A stage without the embedding is left alone.
    """
    if model.pre_process:
        embedding = model.embedding
        embedding.norm = RMSNorm(model.config, model.config.hidden_size, model.config.layernorm_epsilon, kernel)
        embedding.norm.output_dtype = torch.float32 if model.config.fp32_residual_connection else None
        embedding.register_forward_hook(lambda module, inputs, output_sbh: module.norm(output_sbh))


class PostNormLinear(RowParallelLinear):
    """The last linear of a sub-layer, followed by an RMSNorm on the summed output (sandwich norm).

    megatron-core has no slot for a norm behind attention or MLP. Placed as `linear_proj` and as
    `linear_fc2`, this one turns `x + F(norm(x))` into `x + post_norm(F(norm(x)))`, the form of
    arXiv 2512.07612, without touching megatron-core. What a sub-layer adds to the residual stream then has
    RMS `post_norm.weight`, however large the weights grow.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        config: TransformerConfig,
        kernel: Norm = TORCH.norm,
        **kwargs: Any,
    ):
        super().__init__(input_size, output_size, config=config, **kwargs)
        if self.bias is not None:
            raise ValueError("PostNormLinear has no place for a bias: set add_bias_linear=False")
        self.post_norm = RMSNorm(config, output_size, config.layernorm_epsilon, kernel)

    def forward(self, input_sbh: torch.Tensor) -> tuple[torch.Tensor, None]:
        """[s, b, input_size / tensor ranks] to ([s, b, output_size], no bias)."""
        output_sbh, _ = super().forward(input_sbh)
        return self.post_norm(output_sbh), None
