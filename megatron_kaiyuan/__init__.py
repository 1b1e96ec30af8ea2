"""Megatron Kaiyuan: FP16-stable curriculum pretraining on megatron-core.

Importing this package needs neither an accelerator nor torch; `megatron_kaiyuan.platform.activate()`
is the one call that touches a device.
"""

__version__ = "0.1.0"
