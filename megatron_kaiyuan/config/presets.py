"""Named network shapes; a recipe names one and may override single fields.

Sources: kaiyuan-2b follows the PCMind-2.1-Kaiyuan-2B report (arXiv 2512.07612) where it is known and
Qwen3-1.7B where it is not; docs/decisions.md lists which numbers are this project's choice.
"""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # 2.9 M parameters: small enough that two CPU cores learn something in minutes.
    "kaiyuan-tiny": {
        "num_layers": 4,
        "hidden_size": 128,
        "ffn_hidden_size": 384,
        "num_attention_heads": 4,
        "num_query_groups": 2,
        "kv_channels": 32,
        "vocab_size": 8192,
        "max_position_embeddings": 2048,
    },
    # 2.032 B parameters, 1.41 B of them outside the embeddings.
    "kaiyuan-2b": {
        "num_layers": 28,
        "hidden_size": 2048,
        "ffn_hidden_size": 6144,
        "num_attention_heads": 16,
        "num_query_groups": 8,
        "kv_channels": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 4096,
    },
}
