"""How good an exported model is on text that it never saw."""

from megatron_kaiyuan.evaluate.run import evaluate, summary_line

__all__ = ["evaluate", "summary_line"]
