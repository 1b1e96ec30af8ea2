from __future__ import annotations

from typing import Any

import pytest

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.generate.sampling import Sampling


def test_only_what_is_set_is_passed_on() -> None:
    assert Sampling().options() == {"max_new_tokens": 64, "do_sample": False, "num_return_sequences": 1}
    assert Sampling(do_sample=True, top_p=0.5).options()["top_p"] == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.5}, "--temperature: is for drawn tokens; add --do-sample"),
        ({"min_p": 0.1}, "--min-p: is for drawn tokens"),
        ({"num_return_sequences": 2}, "--num-return-sequences: they would all be the same text"),
        ({"do_sample": True, "top_p": 1.5}, "--top-p 1.5: must be between"),
        ({"do_sample": True, "temperature": 0.0}, "--temperature 0.0: must be between"),
        ({"do_sample": True, "temperature": float("nan")}, "--temperature nan: must be between"),
        ({"max_new_tokens": 0}, "--max-new-tokens 0: must be between 1"),
        ({"repetition_penalty": 0.0}, "--repetition-penalty 0.0: must be"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Sampling(**options)
