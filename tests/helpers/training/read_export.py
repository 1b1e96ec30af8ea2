"""Read an exported folder with whichever transformers is first on the path: python read_export.py FOLDER LOGITS TEXT

Prints what its classes hold as one JSON line; puts the logits of fixed token ids into the file LOGITS.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers


def token_ids(vocabulary: int) -> torch.Tensor:
    return torch.randint(vocabulary, (2, 97), generator=torch.Generator().manual_seed(3))


def described(network: Any, tokenizer: Any, text: str) -> dict[str, Any]:
    """What must be equal whichever version reads the folder, in terms that both have."""
    config, generation = network.config, network.generation_config
    rotary = [getattr(network.model, name, None) for name in ("rotary_emb", "rotary_emb_local")]
    buffers = {name: buffer for part in rotary if part is not None for name, buffer in part.named_buffers()}
    return {
        # The smallest frequency of each kind of layer, which the rotary base alone gives.
        "rotary": sorted({f"{buffer[-1].item():.6e}" for name, buffer in buffers.items() if "original" not in name}),
        "dtype": str(network.dtype),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "tied": network.lm_head.weight.data_ptr() == network.model.embed_tokens.weight.data_ptr(),
        "sliding": [bool(getattr(layer.self_attn, "is_sliding", False)) for layer in network.model.layers],
        "scaling": network.model.layers[0].self_attn.scaling,
        "ids": tokenizer.encode(text),
        "extra": tokenizer.all_special_tokens,
        "ends": [tokenizer.eos_token_id, generation.eos_token_id, config.eos_token_id],
        "pads": [generation.pad_token_id, config.pad_token_id, generation.bos_token_id, config.bos_token_id],
        **{
            name: getattr(config, name)
            for name in ("head_dim", "rms_norm_eps", "vocab_size", "max_position_embeddings", "num_key_value_heads")
        },
        **{
            name: getattr(config, name, None)
            for name in ("final_logit_softcapping", "attn_logit_softcapping", "query_pre_attn_scalar", "sliding_window")
        },
    }


def main(folder: Path, logits: Path, text: str) -> None:
    own = {"trust_remote_code": True} if "auto_map" in json.loads((folder / "config.json").read_text()) else {}
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, **own).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **own)
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    prompt = token_ids(network.config.vocab_size)[:1, :9]
    written = network.generate(prompt, **options)
    if not torch.equal(written, network.generate(prompt, **options, use_cache=False)):
        raise SystemExit("generation with a cache differs from that without")
    with torch.no_grad():
        torch.save(network(token_ids(network.config.vocab_size)).logits, logits)
    print(json.dumps({"version": transformers.__version__, **described(network, tokenizer, text)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
