"""What the report prints of its examples."""

from __future__ import annotations

import re
from pathlib import Path

from data_tools.dedup.deduplicate import deduplicate
from data_tools.dedup.report import report_lines
from data_tools.dedup.request import Request
from data_tools.engines.local import LocalEngine
from data_tools.steps.datasets import reading_settings
from tests.helpers.files.json_lines import write_rows


def test_an_example_below_the_threshold_says_why(tmp_path: Path) -> None:
    """Three texts of 96 word 5-grams, each with two words of the one before replaced: J is 86/106, and 76/116."""
    first = [f"word{chr(97 + number // 10)}{chr(97 + number % 10)}" for number in range(100)]
    second = [{20: "one", 40: "two"}.get(place, word) for place, word in enumerate(first)]
    third = [{60: "three", 80: "four"}.get(place, word) for place, word in enumerate(second)]
    rows = [{"text": " ".join(words), "score": score} for words, score in ((first, 3.0), (second, 2.0), (third, 1.0))]
    write_rows(tmp_path / "a.jsonl", rows)
    request = Request((str(tmp_path / "a.jsonl"),), tmp_path / "out", max_removed=1.0, score="score")
    report = deduplicate(request, reading_settings(), LocalEngine(1))
    lines = [line for line in report_lines(report, request.recipe.threshold) if line.startswith("example")]
    assert sorted(lines) == [
        f"example, Jaccard {76 / 116:.3f} (below the threshold: joined through other documents):",
        f"example, Jaccard {86 / 106:.3f}:",
    ]
    # Unchecked pairs have no Jaccard index to compare with the threshold.
    assert not [line for line in report_lines(report) if re.search("threshold", line)]
