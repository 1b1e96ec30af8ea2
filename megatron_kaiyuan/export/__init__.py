"""A trained model out of this project: a folder that stock transformers loads."""

from megatron_kaiyuan.export.compare import largest_logit_difference
from megatron_kaiyuan.export.huggingface import export_model
from megatron_kaiyuan.export.loading import load_network, load_tokenizer

__all__ = ["export_model", "largest_logit_difference", "load_network", "load_tokenizer"]
