"""A run on one page."""

from megatron_kaiyuan.report.build import build_report

__all__ = ["build_report"]
