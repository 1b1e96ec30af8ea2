"""The Kaiyuan network as megatron-core specs: sandwich norm, soft-capped logits, QK-norm.

Stock Megatron-LM users: `--spec megatron_kaiyuan.model.spec kaiyuan_layer_spec` gives the layers, and one
call in `model_provider`, `megatron_kaiyuan.model.head.cap_logits(model, 30.0)`, caps the logits.
"""
