"""The kinds of weights that recipes, parameter groups and monitors distinguish; `network.py` has each weight's kind."""

from __future__ import annotations

from typing import Literal

WeightKind = Literal["embedding", "embedding_norm", "qkv", "proj", "fc1", "fc2", "norms", "final_norm", "head"]
