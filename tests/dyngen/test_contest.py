"""What a contest on data that is there already runs."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import yaml

from dyngen import contest
from dyngen.report.evaluate import evaluate
from dyngen.report.summary import summarise
from dyngen.rollout import Sampling


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


def test_what_waits_for_what(tmp_path: Path) -> None:
    (tmp_path / "contest.yaml").write_text(
        "seeds: 2\n"
        "models: [image, discriminator, {config: video, after: []},\n"
        "  {config: discriminator, name: again, after: [discriminator]}]\n"
        "systems: {one: {model: image, sampling: {}}, other: {model: film, sampling: {}},\n"
        "  strange: {model: elsewhere, sampling: {}}}\n"
        "forecasts: {}\n"
        "free_run: {}\n"
    )
    (tmp_path / "video.yaml").write_text("trainer: {logger: {init_args: {version: film}}}\n")
    rules = contest.read_contest(tmp_path / "contest.yaml")
    reports = [tmp_path / "seed0", tmp_path / "seed1"]
    waits = {s.name: s.after for s in contest._stages(tmp_path, tmp_path, rules, reports)}
    trained = ("image", "discriminator", "video", "again")
    assert waits == {"cube": None} | {
        f"seed{n}/{name}": after
        for n in (0, 1)
        for name, after in {
            "image": ("cube",),
            "discriminator": ("cube", f"seed{n}/image"),
            "video": ("cube",),
            "again": ("cube", f"seed{n}/discriminator"),
            "one_forecast": (f"seed{n}/image",),
            "one_free_run": (f"seed{n}/image",),
            "other_forecast": (f"seed{n}/video",),
            "other_free_run": (f"seed{n}/video",),
            "strange_forecast": tuple(f"seed{n}/{name}" for name in trained),
            "strange_free_run": tuple(f"seed{n}/{name}" for name in trained),
            "compare": tuple(
                f"seed{n}/{name}_{kind}"
                for name in ("one", "other", "strange")
                for kind in ("forecast", "free_run")
            ),
        }.items()
    }


def test_all_of_the_sampling_is_said_for_checkpoints_have_settings_of_their_own(
    tmp_path: Path,
) -> None:
    (tmp_path / "contest.yaml").write_text(
        "seeds: 1\nmodels: [image]\nforecasts: {}\nfree_run: {}\n"
        "systems: {one: {model: image, free_run: false, sampling: {steps: 3, scale: 0.0}}}\n"
    )
    rules = contest.read_contest(tmp_path / "contest.yaml")
    _, _, roll, _ = contest._stages(tmp_path, tmp_path, rules, [tmp_path / "seed0"])
    words = dict(zip(roll.arguments[1::2], roll.arguments[2::2], strict=True))
    said = {k.removeprefix("--sampling."): v for k, v in words.items() if "sampling" in k}
    parsed = {name: yaml.safe_load(value) for name, value in said.items()}
    assert parsed == asdict(Sampling(steps=3, scale=0.0)) | {"interval": [0.0, float("inf")]}


def test_a_training_waits_for_those_above_it_alone(tmp_path: Path) -> None:
    rules = tmp_path / "contest.yaml"
    rules.write_text(
        "seeds: 1\nmodels: [image, {config: video, after: [audio]}]\nsystems: {}\n"
        "forecasts: {}\nfree_run: {}\n"
    )
    with pytest.raises(ValueError, match="video waits for audio, which is not trained before it"):
        contest.read_contest(rules)


def test_every_variable_has_its_own_figures(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def frames(*dims: str, offset: float = 0.0) -> xr.Dataset:
        sizes = {"initial": 6, "member": 4, "lead": 3, "time": 40, "lat": 4, "lon": 8}
        shape = [sizes[dim] for dim in dims]
        of = {name: (dims, offset + rng.normal(size=shape)) for name in ("pr", "ta")}
        of["ta"] = (dims, 10 * of["ta"][1])
        return xr.Dataset(of)

    space = ("lat", "lon")
    scores = evaluate(
        {
            "good": frames("initial", "member", "lead", *space),
            "off": frames("initial", "member", "lead", *space, offset=2.0),
        },
        frames("initial", "lead", *space),
        reference=frames("time", *space),
        bootstrap=5,
    )
    scores.to_netcdf(tmp_path / "scores.nc", engine="h5netcdf")
    costs = {"costs": {"good": {"parameters": 5}}}
    (tmp_path / "summary.json").write_text(json.dumps(summarise(scores) | costs))
    found = contest._summary([tmp_path])
    assert list(found["variables"]) == ["pr", "ta"]
    assert found["systems"] == found["variables"]["pr"]["systems"]
    for name in ("pr", "ta"):
        for system in ("good", "off"):
            of = found["variables"][name]["systems"][system]
            exact = scores["crps"].sel(variable=name, system=system).values
            assert list(of["crps"].values()) == pytest.approx(exact.tolist())
        assert found["variables"][name]["systems"]["good"]["parameters"] == 5

    found |= {"seconds": {}, "seed": [0], "command": "", "machine": {"processor": ""}}
    units = scores.assign_coords(units=("variable", ["mm", "K"]))
    units.to_netcdf(tmp_path / "scores.nc", engine="h5netcdf", mode="w")
    contest._write_page(tmp_path, "told", "a contest", found, tmp_path)
    page = (tmp_path / "told.md").read_text()
    for name, unit in (("pr", "mm"), ("ta", "K")):
        section = page.partition(f"## {name}\n")[2].partition("## ")[0]
        assert f"(told_{name}_crps.svg)" in section
        assert f"fair CRPS ({unit})" in (tmp_path / f"told_{name}_crps.svg").read_text()
