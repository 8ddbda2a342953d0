"""What a contest on data that is there already runs."""

import json
from pathlib import Path
from typing import Any

import pytest

from dyngen import contest


@pytest.mark.parametrize("cube", ["data.zarr", ["data.zarr", "places.zarr"]])
def test_data_that_is_there_is_not_simulated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cube: Any
) -> None:
    monkeypatch.setenv("DYNGEN_CUBE", "data.zarr")
    given = cube.replace("data.zarr", "${oc.env:DYNGEN_CUBE}") if cube == "data.zarr" else cube
    (tmp_path / "contest.yaml").write_text(
        f"cube: {json.dumps(given)}\n"
        "seeds: 1\n"
        "models: [image]\n"
        "systems: {one: {model: image, sampling: {steps: 2}, free_run: false}}\n"
        "forecasts: {initial_states: 1, members: 1, steps: 1}\n"
        "free_run: {members: 1, steps: 1}\n"
        "summary: contest\n"
    )
    rules = contest.read_contest(tmp_path / "contest.yaml")
    assert rules.summary == "contest"
    fit, roll, compare = (
        stage.arguments
        for stage in contest._stages(tmp_path, tmp_path, rules, [tmp_path / "seed0"])
    )
    word = cube if isinstance(cube, str) else json.dumps(cube)
    assert fit[fit.index("--data.init_args.path") + 1] == word
    assert roll[roll.index("--data.path") + 1] == word
    assert compare[compare.index("--reference") + 1] == "data.zarr"
