"""The page of a contest: every number where its heading says."""

from typing import Any

from dyngen.report.contest_table import contest_markdown

SUMMARY: dict[str, Any] = {
    "command": "dyngen contest",
    "seed": [0, 1],
    "seconds": {"a": 90.0, "b": 30.0},
    "machine": {"processor": "a machine"},
    "systems": {
        "ours": {
            "crps": {"1": 0.1, "2": 0.2},
            "spread_skill": {"1": 1.1, "2": 0.9},
            "crps_ratio": {"1": 1.0, "2": 1.0},
            "free_run": {"steps": 1000.0, "std_ratio": 0.98, "mean_drift": 2e-5},
        },
        "other_one": {
            "crps": {"1": 0.15, "2": 0.25},
            "std_ratio": 1.02,
            "crps_ratio": {"1": 1.5, "2": 1.25},
            "crps_ratio_interval": {"low": {"1": 1.4, "2": 1.1}, "high": {"1": 1.6, "2": 1.4}},
        },
    },
}


def cells(page: str, row: str, table: int = 0) -> dict[str, str]:
    """A row of a table of the page, by heading."""
    block = [b for b in page.split("\n\n") if b.startswith("| ")][table]
    head, _, *rows = [[c.strip() for c in line.strip("|").split("|")] for line in block.split("\n")]
    return dict(zip(head, next(r for r in rows if r[0] == row), strict=True))


def test_a_page_has_every_number_where_its_heading_says() -> None:
    costs = {"ours": {"parameters": 2_500_000, "training": {"seconds": 60.0, "flops": 3e12}}}
    page = contest_markdown("a world: contest", SUMMARY, costs, {"": ["summary_crps.svg"]})
    assert "2 trainings of each model, 2 minutes on a machine" in page
    ours = cells(page, "ours")
    assert (ours["1"], ours["2"], ours["spread-skill at 1"], ours["at 2"]) == (
        "0.1", "0.2", "1.1", "0.9",
    )  # fmt: skip
    other = cells(page, "other one")
    assert (other["spread-skill at 1"], other["std ratio"]) == ("–", "1.02")
    assert cells(page, "other one", 1)["2"] == "1.25 (1.10 to 1.40)"
    free = cells(page, "ours", 2)
    assert (free["steps"], free["std ratio"]) == ("1000", "0.98")
    assert free["drift of the mean per 1,000 steps"] == "0.02"
    assert cells(page, "ours", 3)["training FLOPs"] == "3 T"
    assert "![summary crps](summary_crps.svg)" in page


def test_several_variables_have_a_heading_each() -> None:
    warm = {"ours": {"crps": {"1": 7.0}, "spread_skill": {"1": 0.5}}}
    summary = SUMMARY | {"variables": {"rain": {"systems": SUMMARY["systems"]},
                                       "ta": {"systems": warm}}}  # fmt: skip
    files = {"rain": ["summary_rain_crps.svg"], "ta": ["summary_ta_crps.svg"]}
    page = contest_markdown("a world: contest", summary, {}, files)
    assert page.index("## rain") < page.index("| other one |") < page.index("## ta")
    assert page.index("(summary_rain_crps.svg)") < page.index("## ta")
    assert page.index("## ta") < page.index("![summary ta crps](summary_ta_crps.svg)")
    assert cells(page, "ours")["2"] == "0.2"
    assert cells(page, "ours", 3)["1"] == "7"
