"""`kaiyuan-data`: one command a stage, from raw text to a phase. No logic lives here, only arguments."""

from __future__ import annotations

from megatron_kaiyuan.command_line import make_app, run_app

app = make_app("Turn raw text into Megatron corpora and ordered training phases.")


def main() -> None:
    """Entry point of `kaiyuan-data`."""
    run_app(app)


if __name__ == "__main__":
    main()
