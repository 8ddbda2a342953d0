"""Scores of forecasts and free runs whose laws are known, and of single scores by other means."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scoringrules
import torch
import xarray as xr
from scipy import stats

from dyngen.metrics.spectra import isotropic_spectrum, log_spectral_distance
from dyngen.metrics.temporal import autocorrelation
from dyngen.report.evaluate import evaluate
from dyngen.report.summary import by_variable, summarise

COEFFICIENT = 0.8
OF_INITIALS = ("truth", "initial_frames")


def of(scores: xr.Dataset, score: str, system: str) -> np.ndarray:
    return scores[score].sel(variable="vorticity", system=system).values


def test_scores_of_an_ensemble_that_follows_the_law_of_the_truth(scores: xr.Dataset) -> None:
    """CRPS of N(m, s^2) for its own draws is s / sqrt(pi), s^2 = 1 - a^(2 lead)."""
    lead = np.arange(1, 13)
    spread = np.sqrt(1 - COEFFICIENT ** (2 * lead))
    np.testing.assert_allclose(of(scores, "crps", "guided"), spread / math.sqrt(math.pi), rtol=0.06)
    np.testing.assert_allclose(of(scores, "spread", "guided"), spread, rtol=0.06)
    np.testing.assert_allclose(of(scores, "spread_skill", "guided"), 1, atol=0.08)
    assert abs(of(scores, "std_ratio", "guided") - 1) < 0.04
    assert of(scores, "rank_distance_from_flat", "guided") < 0.005
    lags = scores["lag"].values[:6]
    for system in ("guided", "truth", "climatology"):
        np.testing.assert_allclose(
            of(scores, "autocorrelation", system)[:6], COEFFICIENT**lags, atol=0.06
        )
    assert of(scores, "log_spectral_distance_db", "guided") < 0.7


def test_scores_of_the_systems_to_beat(scores: xr.Dataset) -> None:
    """Persistence: E|x_l - x_0| = sqrt(2 (1 - a^l)) sqrt(2 / pi). Climatology: E|x - y| / 2."""
    lead = np.arange(1, 13)
    error = np.sqrt(2 * (1 - COEFFICIENT**lead)) * math.sqrt(2 / math.pi)
    np.testing.assert_allclose(of(scores, "crps", "persistence"), error, rtol=0.06)
    np.testing.assert_allclose(of(scores, "autocorrelation", "persistence")[:5], 1)
    assert np.isnan(of(scores, "spread_skill", "persistence")).all()
    climate = 1 / math.sqrt(math.pi)
    np.testing.assert_allclose(of(scores, "crps", "climatology"), climate, rtol=0.08)
    np.testing.assert_allclose(of(scores, "crps", "unguided"), climate, rtol=0.08)
    np.testing.assert_allclose(of(scores, "autocorrelation", "unguided")[1:5], 0, atol=0.05)


def test_each_score_equals_the_plain_formula(world: dict[str, Any], scores: xr.Dataset) -> None:
    ensemble = world["forecasts"]["guided"]["vorticity"].values.astype(float)
    truth = world["truth"]["vorticity"].values.astype(float)
    crps = scoringrules.crps_ensemble(truth, np.moveaxis(ensemble, 1, -1), estimator="fair")
    np.testing.assert_allclose(of(scores, "crps", "guided"), crps.mean((0, 2, 3)), rtol=1e-5)
    error = ensemble.mean(1) - truth
    np.testing.assert_allclose(of(scores, "bias", "guided"), error.mean((0, 2, 3)), atol=1e-7)
    rmse = np.sqrt((error**2).mean((0, 2, 3)))
    np.testing.assert_allclose(of(scores, "rmse", "guided"), rmse, rtol=1e-5)
    centre = world["training"]["vorticity"].values.astype(float).mean((0, 1))
    ratio = (ensemble - centre).std() / (truth - centre).std()
    np.testing.assert_allclose(of(scores, "std_ratio", "guided"), ratio, rtol=1e-6)
    expected = autocorrelation(
        torch.from_numpy(ensemble), [1, 4], time_dim=2, mean=torch.from_numpy(centre)
    )
    found = scores["autocorrelation"].sel(variable="vorticity", system="guided", lag=[1, 4])
    np.testing.assert_allclose(found.values, expected.numpy(), rtol=1e-6)
    power = isotropic_spectrum(torch.from_numpy(ensemble)).mean((0, 1, 2))
    own = isotropic_spectrum(torch.from_numpy(truth)).mean((0, 1))
    np.testing.assert_allclose(of(scores, "spectrum", "guided"), power.numpy(), rtol=1e-6)
    distance = log_spectral_distance(power, own, last=4)
    np.testing.assert_allclose(
        of(scores, "log_spectral_distance_db", "guided"), distance.numpy(), rtol=1e-6
    )


def test_scores_of_events_and_fields_equal_scoringrules(
    world: dict[str, Any], scores: xr.Dataset
) -> None:
    ensemble = np.moveaxis(world["forecasts"]["guided"]["vorticity"].values.astype(float), 1, -1)
    truth = world["truth"]["vorticity"].values.astype(float)
    reference = world["reference"]["vorticity"].values.astype(float)
    biased = scoringrules.crps_ensemble(truth, ensemble, estimator="nrg").mean((0, 2, 3))
    np.testing.assert_allclose(of(scores, "crps_biased", "guided"), biased, rtol=1e-5)
    fields = np.moveaxis(ensemble, -1, 2).reshape(40, 12, 6, 64) / 8
    energy = scoringrules.es_ensemble(truth.reshape(40, 12, 64) / 8, fields, estimator="fair")
    np.testing.assert_allclose(of(scores, "energy_score", "guided"), energy.mean(0), rtol=1e-5)
    thresholds = scores["threshold"].sel(variable="vorticity").values
    np.testing.assert_allclose(thresholds, np.quantile(reference, [0.9, 0.99]), rtol=1e-3)
    for q, threshold in enumerate(thresholds):
        came, said = truth > threshold, (ensemble > threshold).mean(-1)
        brier = scoringrules.brier_score(came.astype(float), said).mean((0, 2, 3))
        np.testing.assert_allclose(of(scores, "brier", "guided")[q], brier, rtol=1e-9)
        rate = came.mean((0, 2, 3))
        np.testing.assert_allclose(scores["event_frequency"][0, q], rate, rtol=1e-9)
        skill = 1 - brier / (rate * (1 - rate))
        np.testing.assert_allclose(of(scores, "brier_skill", "guided")[q], skill, rtol=1e-9)
        parts = [of(scores, f"brier_{part}", "guided")[q] for part in ("reliability", "resolution")]
        left = of(scores, "brier_uncertainty", "guided")[q]
        np.testing.assert_allclose(parts[0] - parts[1] + left, brier, rtol=1e-9)
        tail = scoringrules.twcrps_ensemble(truth, ensemble, a=threshold, estimator="fair")
        found = of(scores, "threshold_weighted_crps", "guided")[q]
        np.testing.assert_allclose(found, tail.mean((0, 2, 3)), rtol=1e-4)


def test_a_calibrated_ensemble_passes_every_test_of_calibration(scores: xr.Dataset) -> None:
    for system in ("guided", "unguided"):
        assert of(scores, "rank_p_value", system) > 0.002
        assert (of(scores, "rank_p_value_lead", system) < 0.01).sum() <= 1  # of twelve
    np.testing.assert_allclose(of(scores, "spread_skill_by_scale", "guided"), 1, atol=0.2)
    assert np.isnan(of(scores, "rank_p_value", "persistence"))


def test_events_in_the_law_of_the_truth_score_what_can_be_foreseen(scores: xr.Dataset) -> None:
    """Fair Brier score: E[p (1 - p)], p the chance to exceed given the first frame."""
    lead = np.arange(1, 13)[:, None]
    spread = np.sqrt(1 - COEFFICIENT ** (2 * lead))
    first, weights = np.polynomial.hermite_e.hermegauss(60)
    for q, threshold in enumerate(scores["threshold"].sel(variable="vorticity").values):
        chance = stats.norm.sf((threshold - COEFFICIENT**lead * first) / spread)
        expected = (chance * (1 - chance) * weights).sum(1) / weights.sum()
        found = of(scores, "brier_fair", "guided")[q]
        # One value in a hundred is seldom seen in forty forecasts.
        np.testing.assert_allclose(found.mean(), expected.mean(), rtol=0.12 if q == 0 else 0.35)
    skill = of(scores, "brier_skill", "guided")[0]
    assert skill[0] > 0.12 > skill[2]
    assert (np.abs(of(scores, "roc_area", "unguided") - 0.5) < 0.1).all()
    assert (of(scores, "roc_area", "guided")[:, 0] > 0.8).all()
    # As many events nearby, sooner or later, but not at the right place.
    near, far = (of(scores, "fractions_skill", s)[0] for s in ("guided", "unguided"))
    assert (np.diff(far, axis=-1) > 0.1).all()
    assert (near[0] > far[0] + 0.05).all()


def test_a_narrow_ensemble_is_found_out(world: dict[str, Any]) -> None:
    def narrow(data: xr.Dataset) -> xr.Dataset:
        mean = data.mean("member")
        return (mean + 0.5 * (data - mean)).transpose(*data["vorticity"].dims)

    forecasts = {"narrow": narrow(world["forecasts"]["guided"])}
    found = evaluate(**{**world, "forecasts": forecasts, "free_runs": {}, "bootstrap": 10})
    assert of(found, "rank_p_value", "narrow") < 0.002
    assert (of(found, "rank_p_value_lead", "narrow") < 0.01).all()
    assert (of(found, "spread_skill_by_scale", "narrow") < 0.75).all()
    assert (of(found, "brier_reliability", "narrow") > 0.001).any()


def test_extremes_and_waves_of_free_runs_are_told_from_the_truth(scores: xr.Dataset) -> None:
    steps = scores["return_period"].attrs["block_steps"]
    assert steps == 57  # of 3 runs of 400 steps, seven blocks each
    at = scores["return_period"].values
    # Of independent steps; one of 57 sets of three runs has no more than 1200 of them.
    expected = 0.3 + 1.2 * stats.norm.ppf((1 - 1 / at) ** (1 / steps))
    np.testing.assert_allclose(of(scores, "free_return_level", "unguided"), expected, rtol=0.1)
    low, high = of(scores, "free_return_level_interval", "unguided")
    level = of(scores, "free_return_level", "unguided")
    assert ((low < level) & (level < high)).all()
    bias = of(scores, "free_return_level_bias", "unguided")
    np.testing.assert_allclose(
        bias, level - scores["reference_return_level"].sel(variable="vorticity").values
    )
    assert (bias[:6] > 0.5).all()
    assert (np.abs(of(scores, "free_return_level_bias", "guided")[:6]) < 0.25).all()
    # White in time is further from AR(1) than another run of AR(1).
    near, far = (of(scores, "free_wave_distance_db", s) for s in ("guided", "unguided"))
    floor = float(scores["reference_wave_distance_db"].sel(variable="vorticity"))
    assert near < 2 * floor < 0.6 * far
    levels = scores["level"].values
    quantiles = of(scores, "free_value_quantile", "unguided")
    inner = (levels > 0.005) & (levels < 0.995)
    expected = 0.3 + 1.2 * stats.norm.ppf(levels)
    np.testing.assert_allclose(quantiles[inner], expected[inner], atol=0.06)


def test_waves_of_forecasts_that_are_long_enough(world: dict[str, Any]) -> None:
    runs = world["reference"]["vorticity"].values[:, :384].reshape(4 * 24, 16, 8, 8)

    def forecast(values: np.ndarray, dims: tuple[str, ...]) -> xr.Dataset:
        return xr.Dataset({"vorticity": (dims, values)})

    dims = ("initial", "member", "lead", "lat", "lon")
    found = evaluate(
        {
            "right": forecast(runs[32:].reshape(32, 2, 16, 8, 8), dims),
            "white": forecast(
                np.random.default_rng(0).normal(size=(32, 2, 16, 8, 8)).astype("f4"), dims
            ),
        },
        forecast(runs[:32], ("initial", "lead", "lat", "lon")),
        reference=world["reference"],
        bootstrap=5,
    )
    right, white = (of(found, "wave_distance_db", s) for s in ("right", "white"))
    assert right < 2 * float(found["wave_halves_distance_db"][0]) < 0.7 * white
    power = found["wave_spectrum"].sel(variable="vorticity", system="white")
    # A trend and a mean are taken out of 16 steps: 14 of 16 parts of the variance are left.
    assert math.isclose(float(power.sum()), 14 / 16, rel_tol=0.03)


def test_intervals_have_the_width_of_the_sampling_error(
    world: dict[str, Any], scores: xr.Dataset
) -> None:
    low, high = of(scores, "crps_interval", "guided")
    point = of(scores, "crps", "guided")
    assert (low < point).all()
    assert (point < high).all()
    ensemble = world["forecasts"]["guided"]["vorticity"].values.astype(float)
    truth = world["truth"]["vorticity"].values.astype(float)
    crps = scoringrules.crps_ensemble(truth, np.moveaxis(ensemble, 1, -1), estimator="fair")
    error = crps.mean((2, 3)).std(0) / math.sqrt(len(truth))
    np.testing.assert_allclose(high - low, 2 * 1.96 * error, rtol=0.3)


def test_free_runs_are_told_from_the_truth(scores: xr.Dataset) -> None:
    assert abs(of(scores, "free_end_std_ratio", "guided") - 1) < 0.06
    assert abs(of(scores, "free_std_ratio", "unguided") - 1.2) < 0.04
    assert abs(of(scores, "free_bias", "unguided") - 0.3) < 0.04
    assert of(scores, "free_log_spectral_distance_db", "guided") < 0.7
    # 20 log10 1.2 dB in every shell
    assert abs(of(scores, "free_log_spectral_distance_db", "unguided") - 1.58) < 0.4
    lags = scores["lag"].values
    found = of(scores, "free_autocorrelation", "guided")
    np.testing.assert_allclose(found, COEFFICIENT**lags, atol=0.08)
    np.testing.assert_allclose(of(scores, "free_autocorrelation", "unguided")[1:], 0, atol=0.02)
    # 0.95 quantile of N(0.3, 1.2^2) less that of N(0, 1)
    tail = scores["free_tail_bias"].sel(variable="vorticity", system="unguided", probability=0.95)
    assert abs(float(tail) - (0.3 + 0.2 * 1.645)) < 0.07
    steps = of(scores, "free_step", "guided")
    np.testing.assert_allclose(steps, 5.5 + 10 * np.arange(40))
    assert abs(of(scores, "free_std_drift", "guided")) < 5e-4


def test_what_is_read_in_blocks_gives_the_same_figures(
    world: dict[str, Any], scores: xr.Dataset
) -> None:
    lazy = {
        **world,
        "forecasts": {k: v.chunk({"initial": 7}) for k, v in world["forecasts"].items()},
        "reference": world["reference"].chunk({"time": 13}),
        "free_runs": {k: v.chunk({"time": 17}) for k, v in world["free_runs"].items()},
    }
    blocks = evaluate(**lazy, memory=200_000)
    xr.testing.assert_allclose(blocks, scores, rtol=1e-9, atol=1e-12)


def test_no_more_than_the_memory_given_is_read_at_a_time(
    world: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    read = xr.DataArray.to_numpy

    def watched(self: xr.DataArray) -> np.ndarray:
        sizes.append(self.nbytes)
        return read(self)

    monkeypatch.setattr(xr.DataArray, "to_numpy", watched)
    few = {
        key: value.isel(initial=slice(0, 8)) for key, value in world.items() if key in OF_INITIALS
    }
    guided = {"guided": world["forecasts"]["guided"].isel(initial=slice(0, 8))}
    evaluate(**{**world, **few, "forecasts": guided, "bootstrap": 2}, memory=200_000)
    assert max(sizes) < 200_000 < world["free_runs"]["guided"]["vorticity"].nbytes


def test_missing_truth_does_not_count_and_missing_forecasts_do(world: dict[str, Any]) -> None:
    whole = evaluate(**{**world, "bootstrap": 10})
    holed = {key: value for key, value in world.items()}
    holed["truth"] = world["truth"].where(world["truth"]["lon"] != 3)
    holed["forecasts"] = {
        k: v.where(v["lon"] != 3, 1e6 if k == "unguided" else np.nan)
        for k, v in world["forecasts"].items()
    }
    found = evaluate(**{**holed, "bootstrap": 10})
    part = evaluate(
        **{
            **world,
            "bootstrap": 10,
            "area_weights": xr.DataArray([1.0, 1, 1, 0, 1, 1, 1, 1], dims="lon"),
        }
    )
    same = ("crps", "spread_skill", "bias", "autocorrelation", "std_ratio", "std", "crps_biased")
    fields = ("energy_score", "variogram_score", "time_variogram_score", "spread_skill_by_scale")
    for score in (*same, *fields):
        for system in ("guided", "unguided", "persistence"):
            np.testing.assert_allclose(
                of(found, score, system), of(part, score, system), rtol=1e-9, atol=1e-12
            )
    assert not np.allclose(of(part, "crps", "guided"), of(whole, "crps", "guided"), rtol=1e-6)
    broken = {k: v.copy(deep=True) for k, v in world["forecasts"].items()}
    broken["guided"]["vorticity"][3, 2, 5, 1, 1] = np.nan
    told = evaluate(**{**world, "forecasts": broken, "bootstrap": 10})
    assert np.isnan(of(told, "crps", "guided")).tolist() == [i == 5 for i in range(12)]
    assert summarise(told)["crps"]["guided"]["6"] is None
    for score in ("energy_score", "brier", "roc_area", "fractions_skill", "variogram_score"):
        missing = told[score].sel(variable="vorticity", system="guided").isnull()
        others = [d for d in missing.dims if d != "lead"]
        assert missing.all(others).values.tolist() == [i == 5 for i in range(12)], score


def test_the_summary_is_plain_json(scores: xr.Dataset, tmp_path: Path) -> None:
    summary = summarise(scores)
    text = json.dumps(summary, allow_nan=False)
    assert json.loads(text) == summary
    assert set(summary["crps"]) == {"guided", "unguided", "persistence", "climatology"}
    assert list(summary["crps"]["guided"]) == [str(lead) for lead in range(1, 13)]
    assert summary["crps"]["guided"]["3"] == float(of(scores, "crps", "guided")[2])
    assert set(summary["autocorrelation"]) == {
        "truth",
        "reference",
        "guided",
        "unguided",
        "persistence",
        "climatology",
    }
    assert "10" in summary["autocorrelation"]["guided"]
    assert "12" not in summary["autocorrelation"]["guided"]  # no two of 12 leads are 12 apart
    assert "12" in summary["autocorrelation"]["reference"]
    assert set(summary["std_ratio"]) == {"guided", "unguided", "persistence", "climatology"}
    free = summary["free_run"]
    assert set(free) == {"guided", "unguided"}
    assert free["guided"]["steps"] == 400
    assert abs(free["unguided"]["end_std_ratio"] - 1.2) < 0.1
    assert by_variable(summary, "v") == {"v": summary}
    event = summary["events"]["0.9"]
    assert event["threshold"] == float(scores["threshold"][0, 0])
    assert event["brier"]["guided"]["3"] == float(of(scores, "brier", "guided")[0, 2])
    assert event["fractions_skill"]["guided"]["5"]["3"] == float(
        scores["fractions_skill"].sel(system="guided", neighbourhood=5)[0, 0, 2]
    )
    assert "persistence" not in event["brier_fair"]  # one member
    assert set(summary["spread_skill_by_scale"]["guided"]) == {"1", "2–4"}
    assert set(summary["return_level"]) == {"reference", "guided", "unguided"}
    assert list(summary["return_level"]["reference"])[:2] == ["2", "3"]
    assert summary["return_level_block_steps"] == 57
    assert set(summary["time_variogram_score"]["guided"]) == {"1", "2", "5", "10"}
    scores.to_netcdf(tmp_path / "scores.nc")
    with xr.open_dataset(tmp_path / "scores.nc") as again:
        assert summarise(again) == summary


def test_several_variables_are_scored_apart(world: dict[str, Any]) -> None:
    def two(data: xr.Dataset) -> xr.Dataset:
        return data.assign(humidity=2 * data["vorticity"] + 100)

    def every(value: Any) -> Any:
        if isinstance(value, xr.Dataset):
            return two(value)
        return {k: every(v) for k, v in value.items()} if isinstance(value, dict) else value

    both = evaluate(**{key: every(value) for key, value in world.items()})
    assert both["variable"].values.tolist() == ["vorticity", "humidity"]
    of_both = by_variable(summarise(both))
    for lead in ("1", "9"):
        assert math.isclose(
            of_both["humidity"]["crps"]["guided"][lead],
            2 * of_both["vorticity"]["crps"]["guided"][lead],
            rel_tol=1e-4,
        )
    for score in ("autocorrelation", "spread_skill", "std_ratio"):
        values = both[score].sel(system="guided").values
        np.testing.assert_allclose(values[0], values[1], rtol=1e-4)
    json.dumps(summarise(both), allow_nan=False)


def test_free_runs_alone_and_a_single_run_as_reference(world: dict[str, Any]) -> None:
    scores = evaluate(
        {},
        world["truth"],
        reference=world["reference"].isel(trajectory=0),
        free_runs={"guided": world["free_runs"]["guided"].isel(member=0, time=slice(0, 25))},
    )
    assert scores["system"].values.tolist() == ["truth", "guided"]
    assert int(scores["free_step"].notnull().sum()) == 25
    assert summarise(scores)["crps"] == {}


def test_a_blown_up_free_run_is_told(world: dict[str, Any]) -> None:
    run = world["free_runs"]["guided"].copy(deep=True)
    run["vorticity"][0, 300:] = np.nan
    scores = evaluate({}, world["truth"], reference=world["reference"], free_runs={"guided": run})
    assert summarise(scores)["free_run"]["guided"].get("end_std_ratio") is None
    course = of(scores, "free_std", "guided")
    assert np.isnan(course).tolist() == [False] * 30 + [True] * 10


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda w: w["forecasts"].update(guided=w["forecasts"]["guided"].drop_vars("vorticity")),
            "system 'guided' has no variable 'vorticity'; it has none",
        ),
        (
            lambda w: w["forecasts"].update(guided=w["forecasts"]["guided"].isel(lead=slice(5))),
            "system 'guided' has 5 of dimension 'lead' where the truth has 12",
        ),
        (
            lambda w: w["forecasts"].update(guided=w["forecasts"]["guided"].isel(member=0)),
            r"dimensions \('initial', 'lead', 'lat', 'lon'\); they must be",
        ),
        (
            lambda w: w["forecasts"].update(climatology=w["forecasts"]["guided"]),
            "cannot be called 'climatology'",
        ),
        (
            lambda w: w.update(reference=w["reference"].rename(vorticity="pressure")),
            "reference has no variable 'vorticity'; it has pressure",
        ),
        (
            lambda w: w.update(free_runs={"guided": w["forecasts"]["guided"]}),
            "variable 'vorticity' of free run 'guided' has dimensions",
        ),
        (
            lambda w: w.update(training=w["training"].isel(time=slice(4))),
            "stretches of 12 frames, as long as the forecasts",
        ),
        (
            lambda w: w.update(area_weights=xr.DataArray(np.ones(5), dims="lat")),
            "area_weights have dimensions",
        ),
        (lambda w: w.update(truth=w["truth"].isel(lead=0)), "truth has no variable with"),
        (
            lambda w: w.update(reference=w["reference"] * np.nan),
            "the reference holds no value of 'vorticity'",
        ),
        (lambda w: w.update(exceedances=(0.9, 1.0)), r"exceedances has 1\.0; each must be"),
        (lambda w: w.update(neighbourhoods=(1, 4)), "a neighbourhood of 4 cells has no centre"),
        (lambda w: w.update(maxima_block=401), "maxima_block is 401 steps, but 4 runs of 400"),
        (lambda w: w.update(wave_segment=500), "wave_segment is 500 steps, but 4 runs of 400"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(
    world: dict[str, Any], change: Any, sentence: str
) -> None:
    changed = {**world, "forecasts": dict(world["forecasts"])}
    change(changed)
    with pytest.raises(ValueError, match=sentence):
        evaluate(**changed)


def test_other_initial_times_are_refused(world: dict[str, Any]) -> None:
    times = ("initial", np.arange(40.0))
    forecasts = {
        "guided": world["forecasts"]["guided"].assign_coords(initial_time=times),
        "unguided": world["forecasts"]["unguided"].assign_coords(
            initial_time=("initial", np.arange(40.0) + 1)
        ),
    }
    truth = world["truth"].assign_coords(initial_time=times)
    with pytest.raises(ValueError, match="'unguided' starts from other initial times"):
        evaluate(**{**world, "forecasts": forecasts, "truth": truth})
