"""The Kaiyuan network as a class of transformers, 4.57 and 5. `kaiyuan export --format kaiyuan` copies this file.

It needs torch and transformers only. Each field of the training configuration that changes what is computed is a field
of the configuration here, and every rounding happens where it does in training, so that the logits are the trained
network's in FP32, BF16 and FP16. Servers that load models through transformers (vLLM, SGLang) replace attention,
linears, norms and the head by their own: attention goes through `ALL_ATTENTION_FUNCTIONS`, keyword arguments reach it,
and plans for tensor and pipeline parallelism are in the configuration.

Tensor suffixes: b batch, s sequence, h hidden, n heads, d head size.
"""

import inspect
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.configuration_utils import PretrainedConfig
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import can_return_tuple

# transformers 4 wants the positions of the new tokens, and has another name for the embeddings.
_OF_THE_MASK = inspect.signature(create_causal_mask).parameters


class KaiyuanConfig(PretrainedConfig):
    """Sizes by transformers' names; the additions by those of the training configuration."""

    model_type = "kaiyuan"
    keys_to_ignore_at_inference = ["past_key_values"]
    base_model_tp_plan = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    base_model_pp_plan = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "embed_norm": (["inputs_embeds"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    def __init__(
        self,
        vocab_size: int = 256,
        hidden_size: int = 64,
        intermediate_size: int = 128,
        num_hidden_layers: int = 2,
        num_attention_heads: int = 4,
        num_key_value_heads: int = 2,
        head_dim: int = 16,
        max_position_embeddings: int = 128,
        rope_theta: float = 1_000_000.0,
        rms_norm_eps: float = 1e-6,
        initializer_range: float = 0.02,
        use_cache: bool = True,
        qk_layernorm: bool = True,
        sandwich_norm: bool = True,
        embedding_norm: bool = False,
        fp32_residual: bool = False,
        fp32_head: bool = False,
        final_logit_softcapping: float | None = None,
        **options: Any,
    ):
        options.setdefault("tie_word_embeddings", False)
        super().__init__(**options)
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim
        self.max_position_embeddings = max_position_embeddings
        self.rope_theta = rope_theta
        self.rms_norm_eps = rms_norm_eps
        self.initializer_range = initializer_range
        self.use_cache = use_cache
        self.qk_layernorm = qk_layernorm
        self.sandwich_norm = sandwich_norm
        self.embedding_norm = embedding_norm
        self.fp32_residual = fp32_residual
        self.fp32_head = fp32_head
        self.final_logit_softcapping = final_logit_softcapping


class KaiyuanRMSNorm(nn.Module):
    """`x / sqrt(mean(x^2) + eps) * weight` in FP32, rounded once to the precision of the weight."""

    def __init__(self, hidden_size: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[..., h] to [..., h]."""
        exact = hidden_states.float()
        scale = torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return (exact * scale * self.weight.float()).to(self.weight.dtype)

    def in_fp32(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The same, not rounded."""
        exact = hidden_states.float()
        mean_square = torch.linalg.vector_norm(exact, dim=-1, keepdim=True).square() / exact.shape[-1]
        return exact * torch.rsqrt(mean_square + self.variance_epsilon) * self.weight.float()


class KaiyuanNormOfFP32(KaiyuanRMSNorm):
    """The same norm where it reads an FP32 residual stream.

    Servers know the class above by its name or its form, and put a kernel in its place that wants one precision.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[..., h] to [..., h]."""
        return self.in_fp32(hidden_states).to(self.weight.dtype)


def _norm_of_residual(config: KaiyuanConfig) -> KaiyuanRMSNorm:
    kind = KaiyuanNormOfFP32 if config.fp32_residual else KaiyuanRMSNorm
    return kind(config.hidden_size, config.rms_norm_eps)


class KaiyuanMLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: KaiyuanConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act_fn = nn.SiLU()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[b, s, h] to [b, s, h]."""
        return self.down_proj(self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


def _angles(config: KaiyuanConfig, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of each position's angles, [b, 1, s, d], in FP32; computed, so that no buffer can be lost."""
    even = torch.arange(0, config.head_dim, 2, device=position_ids.device).float()
    frequencies = 1.0 / config.rope_theta ** (even / config.head_dim)
    half = position_ids[:, None, :, None].float() * frequencies
    angles = torch.cat((half, half), dim=-1)
    return angles.cos(), angles.sin()


def _rotate(states_bnsd: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotary position embedding, the halves of a head against each other; in FP32, rounded once."""
    cosine, sine = angles
    exact = states_bnsd.float()
    first, second = exact.chunk(2, dim=-1)
    return (exact * cosine + torch.cat((-second, first), dim=-1) * sine).to(states_bnsd.dtype)


def _attend_eagerly(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention from its definition; what transformers calls `eager`. Scores in FP32 for the softmax."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class KaiyuanAttention(nn.Module):
    """Causal attention with grouped key and value heads."""

    is_causal = True

    def __init__(self, config: KaiyuanConfig, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx, self.head_dim = config, layer_idx, config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.head_dim**-0.5
        queries, keys = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)
        if config.qk_layernorm:
            self.q_norm = KaiyuanRMSNorm(self.head_dim, config.rms_norm_eps)
            self.k_norm = KaiyuanRMSNorm(self.head_dim, config.rms_norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """[b, s, h] to [b, s, h]. Heads are not counted here: a tensor-parallel rank has its share of them."""
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.q_proj(hidden_states).view(shape)
        key = self.k_proj(hidden_states).view(shape)
        value_bnsd = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        if self.config.qk_layernorm:
            query, key = self.q_norm(query), self.k_norm(key)
        query_bnsd = _rotate(query.transpose(1, 2), position_embeddings)
        key_bnsd = _rotate(key.transpose(1, 2), position_embeddings)
        if past_key_values is not None:
            key_bnsd, value_bnsd = past_key_values.update(key_bnsd, value_bnsd, self.layer_idx)
        # vLLM looks for this assignment, and for one call of the name, in the source of this method.
        attend = ALL_ATTENTION_FUNCTIONS.get(self.config._attn_implementation, _attend_eagerly)
        output, _ = attend(
            self, query_bnsd, key_bnsd, value_bnsd, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs
        )
        return self.o_proj(output.reshape(*hidden_states.shape[:-1], -1).contiguous())


class KaiyuanDecoderLayer(GradientCheckpointingLayer):
    """x + post(F(pre(x))) for attention, then for the MLP; x + F(pre(x)) without `sandwich_norm`."""

    def __init__(self, config: KaiyuanConfig, layer_idx: int):
        super().__init__()
        self.sandwich_norm = config.sandwich_norm
        self.self_attn = KaiyuanAttention(config, layer_idx)
        self.mlp = KaiyuanMLP(config)
        self.input_layernorm = _norm_of_residual(config)
        if config.sandwich_norm:
            self.post_attention_layernorm = KaiyuanRMSNorm(config.hidden_size, config.rms_norm_eps)
            self.pre_feedforward_layernorm = _norm_of_residual(config)
            self.post_feedforward_layernorm = KaiyuanRMSNorm(config.hidden_size, config.rms_norm_eps)
        else:
            self.post_attention_layernorm = _norm_of_residual(config)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """[b, s, h] to [b, s, h]. Without sandwich norm `post_attention_layernorm` is the norm before the MLP."""
        added = self.self_attn(self.input_layernorm(hidden_states), **kwargs)
        if self.sandwich_norm:
            hidden_states = hidden_states + self.post_attention_layernorm(added)
            added = self.mlp(self.pre_feedforward_layernorm(hidden_states))
            return hidden_states + self.post_feedforward_layernorm(added)
        hidden_states = hidden_states + added
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class KaiyuanPreTrainedModel(PreTrainedModel):
    """What transformers asks of the classes below."""

    config_class = KaiyuanConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["KaiyuanDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = _supports_sdpa = _supports_flex_attn = True
    _supports_attention_backend = True


class KaiyuanModel(KaiyuanPreTrainedModel):
    """The network up to its final norm."""

    def __init__(self, config: KaiyuanConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.embedding_norm:
            self.embed_norm = _norm_of_residual(config)
        self.layers = nn.ModuleList([KaiyuanDecoderLayer(config, layer) for layer in range(config.num_hidden_layers)])
        self.norm = _norm_of_residual(config)
        self.gradient_checkpointing = False
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        for_fp32_head: bool = False,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Token ids or embeddings to the hidden states that the head reads, [b, s, h].

        Args:
            for_fp32_head: they are not rounded. Servers, whose heads are of the weights' precision, do not ask for it.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        new = torch.arange(hidden_states.shape[1], device=hidden_states.device) + seen
        position_ids = new[None] if position_ids is None else position_ids
        for_mask = {
            "config": self.config,
            "inputs_embeds": hidden_states,
            "input_embeds": hidden_states,
            "attention_mask": attention_mask,
            "cache_position": new,
            "past_key_values": past_key_values,
            "position_ids": position_ids,
        }
        mask = create_causal_mask(**{name: value for name, value in for_mask.items() if name in _OF_THE_MASK})
        if self.config.embedding_norm:
            norm = self.embed_norm
            # On later ranks of a server's pipeline another module stands there, and the stream is in FP32 already.
            exact = self.config.fp32_residual and isinstance(norm, KaiyuanRMSNorm)
            hidden_states = norm.in_fp32(hidden_states) if exact else norm(hidden_states)
        if self.config.fp32_residual:
            hidden_states = hidden_states.float()
        # Positions are rotated by, and some attention functions look at them too.
        kwargs |= {"position_embeddings": _angles(self.config, position_ids), "position_ids": position_ids}
        seen_states = []
        for layer in self.layers:
            seen_states.append(hidden_states)
            hidden_states = layer(hidden_states, attention_mask=mask, past_key_values=past_key_values, **kwargs)
        hidden_states = self.norm.in_fp32(hidden_states) if for_fp32_head else self.norm(hidden_states)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden_states,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=(*seen_states, hidden_states) if output_hidden_states else None,
        )


class KaiyuanForCausalLM(KaiyuanPreTrainedModel, GenerationMixin):
    """The network with its head and the soft cap of its logits."""

    _tied_weights_keys = None

    def __init__(self, config: KaiyuanConfig):
        super().__init__(config)
        self.model = KaiyuanModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Token ids or embeddings to logits [b, s, vocabulary]; soft-capped ones and those of `fp32_head` are FP32."""
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **({"for_fp32_head": True} if self.config.fp32_head else {}),
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) and logits_to_keep else logits_to_keep
        hidden_states = outputs.last_hidden_state
        if not isinstance(kept, int):
            hidden_states = hidden_states[:, kept]
        logits = self._head(hidden_states)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=outputs.past_key_values, hidden_states=outputs.hidden_states
        )

    def _head(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.config.fp32_head:
            logits = nn.functional.linear(hidden_states, self.lm_head.weight.float())
        else:
            logits = self.lm_head(hidden_states)
        cap = self.config.final_logit_softcapping
        return logits if cap is None else cap * torch.tanh(logits.float() / cap)
