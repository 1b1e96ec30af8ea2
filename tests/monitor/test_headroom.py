from __future__ import annotations

import math

from megatron_kaiyuan.config import ModelConfig
from megatron_kaiyuan.monitor.headroom import HeadroomWatch


def tiny(**changes: object) -> ModelConfig:
    return ModelConfig(preset="kaiyuan-tiny", **changes)  # type: ignore[arg-type,call-arg]


def test_a_warning_names_layer_and_tensor_and_says_what_to_do() -> None:
    watch = HeadroomWatch(tiny(), 3.0)
    peaks = {"residual": [1.0, 9000.0, 8500.0, 2.0], "logits": [20000.0], "query": [8188.0] * 4}
    first, second = watch.look(peaks)
    assert (first.tensor, first.layer, second.tensor, second.layer) == ("residual", 2, "logits", None)
    assert str(first).startswith("residual of layer 2 is 2.9 bits below 65,504; lower the learning rate")
    assert str(second).startswith("logits is 1.7 bits below 65,504; lower the learning rate")


def test_it_is_told_again_only_when_it_gets_worse_or_comes_back() -> None:
    watch = HeadroomWatch(tiny(), 3.0)
    told = [bool(list(watch.look({"residual": [peak, 1.0, 1.0, 1.0]}))) for peak in (
        10000.0, 10000.0, 15000.0, 20000.0, 10000.0, math.inf, math.inf, 100.0, 10000.0
    )]  # fmt: skip
    assert told == [True, False, False, True, False, True, False, False, True]
    (beyond,) = HeadroomWatch(tiny(), 3.0).look({"residual": [1.0, 1.0, 1.0, math.inf]})
    assert "residual of layer 4 is beyond FP16's range" in str(beyond)


def test_advice_follows_from_what_the_network_lacks() -> None:
    plain = HeadroomWatch(tiny(sandwich_norm=False, qk_layernorm=False), 3.0)
    stream, logits = plain.look({"residual": [9000.0] * 4, "attention_logits": [9000.0] * 4})
    assert "model.sandwich_norm=true" in str(stream) and "model.qk_layernorm=true" in str(logits)
    stream, logits = HeadroomWatch(tiny(), 3.0).look({"residual": [9000.0] * 4, "attention_logits": [9000.0] * 4})
    assert "post_norm_initial_gain" in str(stream) and "weight_decay" in str(logits)
