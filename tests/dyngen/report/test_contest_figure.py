"""The figure of a contest of many systems: every dot where its number says."""

from typing import Any

import pytest

from dyngen.report.contest_figure import rows_by_system

SYSTEMS: dict[str, Any] = {
    "ours": {
        "crps": {"1": 0.1, "5": 0.15, "10": 0.2},
        "spread_skill": {"1": 1.1, "5": 1.0, "10": 0.9},
        "crps_ratio": {"1": 1.0, "5": 1.0, "10": 1.0},
    },
    "other_one": {
        "crps": {"1": 0.15, "5": 0.2, "10": 0.25},
        "crps_ratio": {"1": 0.8, "5": 1.2, "10": 1.25},
        "crps_ratio_interval": {
            "low": {"1": 0.7, "5": 1.1, "10": 1.1},
            "high": {"1": 0.9, "5": 1.3, "10": 1.4},
        },
    },
    "alone": {"crps": {"1": 0.3, "5": 0.3, "10": 0.3}},
}


def test_dots_and_bars_are_where_the_numbers_say() -> None:
    ratio, calibration = rows_by_system(SYSTEMS).axes
    assert [text.get_text() for text in ratio.get_yticklabels()] == ["other one", "ours"]
    lines = [line.get_xdata().tolist() for line in ratio.lines[1:]]  # type: ignore[union-attr]
    bars = [x for x in lines if len(x) == 2]
    dots = [x for x in lines if len(x) == 1]
    assert bars == [[0.7, 0.9], [1, 1], [1.1, 1.4], [1, 1]]  # at lead 1, then at lead 10
    assert dots == [[0.8], [1.0], [1.25], [1.0]]
    heights = [float(line.get_ydata()[0]) for line in ratio.lines[1:]]  # type: ignore[index]
    assert [round(height) for height in heights] == [0, 0, 1, 1] * 2
    spread = [float(line.get_xdata()[0]) for line in calibration.lines[1:]]  # type: ignore[index]
    assert spread == pytest.approx([1.1, 0.9])
