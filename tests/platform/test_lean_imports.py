"""A CPU rank comes to its first step without torch's compiler and without trackers; both are there when asked for."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
import torch
compiler, method = torch.compile, torch.optim.Optimizer.zero_grad
from megatron_kaiyuan import platform
platform.activate("cpu")
import megatron_kaiyuan.train.start
from megatron_kaiyuan.optim.adamw import AdamW

weight = torch.nn.Parameter(torch.ones(2))
optimizer = AdamW([weight], lr=0.5)
weight.sum().backward()
optimizer.step()
optimizer.load_state_dict(optimizer.state_dict())
optimizer.zero_grad()
assert weight.grad is None and float(weight.detach()[0]) < 1
print(sorted({"torch._dynamo", "torch._inductor", "wandb", "tensorboard"} & set(sys.modules)))

assert torch.compile is compiler
from megatron.core.fusions import fused_bias_swiglu
assert fused_bias_swiglu.swiglu.__module__ == fused_bias_swiglu.__name__
import tensorboard, wandb
from torch.utils.tensorboard import SummaryWriter
assert float(torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1))) == 2
print("torch._dynamo" in sys.modules)
"""


def test_start_takes_nothing_along() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout.splitlines()) == (0, ["[]", "True"]), done.stderr
