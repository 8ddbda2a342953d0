"""From nothing to a report, through the command line, on a world small enough for a test."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import xarray as xr
import yaml

from dyngen.cli import main, run
from dyngen.models import TimeConsistencyDiscriminator
from dyngen.models.checkpoints import load_model, read_checkpoint
from dyngen.rollout import Sampling, frame_sampler

ROOT = Path(__file__).parents[2]
EXPERIMENT = ROOT / "experiments" / "turbulence"
SMALL_NETWORK = {"widths": [8, 16], "patch": 1}
EVALUATION: dict[str, Any] = {
    "initial_states": 3,
    "members": 3,
    "leads": 3,
    "free_run_steps": 12,
    "free_run_members": 2,
    "systems": {"guided": {"steps": 3, "sigma_max": 2.0}, "unguided": {"steps": 3, "scale": 0.0}},
}


def shrunk(name: str, folder: Path, steps: int) -> Path:
    """An experiment that ships with the repository, with a smaller network and fewer steps."""
    config = yaml.safe_load((EXPERIMENT / f"{name}.yaml").read_text())
    arguments = config["model"]["init_args"]
    network = arguments["network" if name == "image" else "discriminator"]
    network["init_args"] |= SMALL_NETWORK
    config["data"]["init_args"]["batch_size"] = 4
    config["trainer"] |= {
        "max_steps": steps,
        "limit_val_batches": 1,
        "limit_test_batches": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    for callback in config["trainer"]["callbacks"]:
        if callback["class_path"].endswith("LastCheckpoint"):
            callback["init_args"]["every_n_train_steps"] = 1
        if callback["class_path"].endswith("RolloutEvaluation"):
            callback["init_args"] |= EVALUATION
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a small cube and a hardly trained image model."""
    folder = tmp_path_factory.mktemp("run")
    simulate = ["simulate", "turbulence", "--out", str(folder / "cube.zarr"), "--progress", "false"]
    simulate += ["--trajectories", "8", "--frames", "24", "--parameters.spin_up", "4"]
    simulate += ["--parameters.resolution", "24", "--parameters.output_resolution", "16"]
    run(simulate)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DYNGEN_RUN", str(folder))
        run(["fit", "--config", str(shrunk("image", folder, 6))])
    return folder


@pytest.fixture
def here(world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DYNGEN_RUN", str(world))
    return world


@pytest.fixture(scope="module")
def trained(world: Path) -> Path:
    """The discriminator's checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DYNGEN_RUN", str(world))
        run(["fit", "--config", str(shrunk("discriminator", world, 6))])
    return world / "discriminator" / "checkpoints" / "last.ckpt"


def weights(path: Path) -> dict[str, torch.Tensor]:
    checkpoint: dict[str, Any] = read_checkpoint(path)
    return checkpoint["state_dict"] | {
        f"current.{name}": value for name, value in checkpoint["current_model_state"].items()
    }


def test_a_run_that_is_cut_short_and_resumed_ends_with_the_same_weights(
    here: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = str(shrunk("discriminator", tmp_path, 6))
    fit = ["fit", "--config", config, "--trainer.logger.init_args.version", "cut"]
    step: Callable[..., Any] = TimeConsistencyDiscriminator.training_step

    def power_cut(self: TimeConsistencyDiscriminator, *args: Any) -> Any:
        if self.global_step == 3:
            raise RuntimeError("the power is cut")
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(TimeConsistencyDiscriminator, "training_step", power_cut)
        with pytest.raises(RuntimeError, match="the power is cut"):
            run(fit)
    last = here / "cut" / "checkpoints" / "last.ckpt"
    assert read_checkpoint(last)["global_step"] == 3
    run(fit)
    assert read_checkpoint(last)["global_step"] == 6
    resumed, straight = weights(last), weights(trained)
    assert resumed.keys() == straight.keys()
    for name, value in straight.items():
        assert torch.equal(resumed[name], value), name


def test_a_run_with_other_settings_is_not_continued(
    here: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(shrunk("discriminator", tmp_path, 6))
    with pytest.raises(SystemExit):
        main(["fit", "--config", config, "--model.init_args.learning_rate", "0.5"])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "holds a run with model.init_args.learning_rate = 0.001, not 0.5" in said
    with pytest.raises(SystemExit):
        main(["fit", "--config", config, "--trainer.max_steps", "5"])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "holds a run of 6 steps already, more than trainer.max_steps = 5" in said
    told = here / "discriminator" / "config.yaml"
    text = told.read_text()
    told.unlink()
    with pytest.raises(SystemExit):
        main(["fit", "--config", config])
    assert "config.yaml is missing" in capsys.readouterr().err.strip().splitlines()[-1]
    told.write_text(text)


def test_the_last_checkpoint_is_read_or_missed_and_a_single_callback_will_do(
    here: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = ["validate", "--config", str(shrunk("discriminator", tmp_path, 6))]
    last += ["--trainer.callbacks", "dyngen.callbacks.LastCheckpoint"]
    run(last)
    assert "denoising_error/sigma_1 " in capsys.readouterr().out
    for change in (
        ("--trainer.logger.init_args.version", "nowhere"),
        ("--trainer.logger", "false"),
    ):
        with pytest.raises(ValueError, match="is to read the last checkpoint of its run, and"):
            run([*last, *change])


def test_the_evaluation_writes_scores_of_every_system(
    here: Path, trained: Path, tmp_path: Path
) -> None:
    config = str(shrunk("discriminator", tmp_path, 6))
    run(["test", "--config", config, "--ckpt_path", str(trained)])
    summary = json.loads((here / "summary.json").read_text())
    systems = {"guided", "unguided", "persistence", "climatology"}
    assert set(summary["crps"]) == systems
    assert all(set(leads) == {"1", "2", "3"} for leads in summary["crps"].values())
    for key in ("spread_skill", "bias", "std_ratio", "log_spectral_distance_db"):
        assert {"guided", "unguided"} <= set(summary[key])
    assert {"truth", "guided"} <= set(summary["autocorrelation"])
    assert summary["free_run"]["guided"]["steps"] == 12
    with xr.open_dataset(here / "scores.nc", engine="h5netcdf") as scores:
        assert scores["crps"].dims == ("variable", "system", "lead")
    report = (here / "report.html").read_text()
    assert "guided" in report
    assert "http://" not in report.replace("http://www.w3.org", "")
    # Persistence by hand: the truth of the rollouts' own initial states.
    with xr.open_zarr(here / "rollouts" / "test" / "guided_forecast.zarr") as rollout:
        assert dict(rollout["vorticity"].sizes) == dict(initial=3, member=3, lead=3, y=16, x=16)
        assert rollout["vorticity"].notnull().all()
    events = [f.stat().st_size for f in (here / "discriminator").glob("events*")]
    assert max(events) > 20_000  # figures are among the scalars


def test_a_rollout_from_the_checkpoint_alone_goes_on_and_is_extended(
    here: Path, trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "rollout.zarr"
    options = ["rollout", "--model", str(trained), "--data.path", str(here / "cube.zarr")]
    options += ["--out", str(out), "--initial_states", "2", "--members", "3"]
    options += ["--sampling.steps", "3", "--sampling.sigma_max", "2", "--progress", "false"]
    run([*options, "--steps", "2"])
    run([*options, "--steps", "4"])
    straight = tmp_path / "straight.zarr"
    run([str(straight) if o == str(out) else o for o in options] + ["--steps", "4"])
    one, two = xr.open_zarr(out), xr.open_zarr(straight)
    assert one["vorticity"].shape == (2, 3, 4, 16, 16)
    xr.testing.assert_equal(one, two)


def test_frames_are_sampled_as_beside_training_but_for_what_is_said(
    here: Path, trained: Path, tmp_path: Path
) -> None:
    options = ["rollout", "--model", str(trained), "--data.path", str(here / "cube.zarr")]
    options += ["--initial_states", "2", "--members", "1", "--steps", "1", "--progress", "false"]
    usual = EVALUATION["systems"]["guided"]
    for said, changed in (([], {}), (["--sampling.steps", "2"], {"steps": 2})):
        out = tmp_path / f"{len(said)}.zarr"
        run([*options, *said, "--out", str(out)])
        model, wanted = load_model(trained), Sampling(**usual | changed)
        settings = json.loads(xr.open_zarr(out).attrs["dyngen_settings"])
        sampler = json.dumps(frame_sampler(model, wanted).description())
        assert settings["sampler"] == json.loads(sampler.replace("Infinity", '"inf"'))


def test_the_guide_to_rollouts_does_what_it_says(
    here: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = (ROOT / "docs" / "rollouts.md").read_text()
    code = next(block for block in guide.split("```python\n") if "write_rollout(" in block)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "turbulence").symlink_to(here)
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(code.split("```")[0].replace('"test", 16', '"test", 2'), found)
    assert found["ensemble"].frames.shape == (2, 8, 10, 1, 16, 16)
    with xr.open_zarr(tmp_path / "rollout.zarr") as rollout:
        assert rollout["vorticity"].shape == (2, 8, 10, 16, 16)


def test_a_checkpoint_of_another_cube_is_refused_in_one_sentence(
    here: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.zarr"
    with xr.open_zarr(here / "cube.zarr") as cube:
        smaller = cube.isel(x=slice(0, 8)).load()
        renamed = cube.rename(vorticity="speed").load()
    for changed, words in ((smaller, "shape (16, 16)"), (renamed, "vorticity")):
        for variable in changed.variables.values():
            variable.encoding = {}
        changed.to_zarr(other, mode="w", consolidated=False)
        rollout = ["rollout", "--model", str(trained), "--data.path", str(other)]
        rollout += ["--out", str(tmp_path / "none.zarr"), "--initial_states", "2"]
        with pytest.raises(SystemExit):
            main(rollout)
        said = [line for line in capsys.readouterr().err.splitlines() if "computing" not in line]
        assert len(said) == 1
        assert words in said[0]
        assert not (tmp_path / "none.zarr").exists()


def test_a_checkpoint_says_all_that_it_needs(trained: Path) -> None:
    model = load_model(trained)
    assert isinstance(model, TimeConsistencyDiscriminator)
    assert model.denoiser is not None
    assert model.cube is not None
    assert list(model.cube["variables"]) == ["vorticity"]
    assert model.cube["normalisation"]["std"][0] > 0


@pytest.mark.slow
def test_the_demo_is_interrupted_goes_on_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment, out = tmp_path / "experiment", tmp_path / "demo"
    experiment.mkdir()
    (experiment / "cube.yaml").write_text(
        "trajectories: 8\nframes: 24\nprogress: false\n"
        "parameters: {spin_up: 4, resolution: 24, output_resolution: 16}\n"
    )
    for name in ("image", "discriminator"):
        shrunk(name, experiment, 3)
    (experiment / "demo.yaml").write_text("trainer: {max_steps: 4}\n")
    monkeypatch.setenv("DYNGEN_RUN", "elsewhere")
    command = ["demo", "--out", str(out), "--experiment", str(experiment)]
    step: Callable[..., Any] = TimeConsistencyDiscriminator.training_step

    def interrupted(self: TimeConsistencyDiscriminator, *args: Any) -> Any:
        if self.global_step == 2:
            raise ValueError("somebody wants to stop")
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(TimeConsistencyDiscriminator, "training_step", interrupted)
        with pytest.raises(ValueError, match="somebody wants to stop"):
            run(command)
    stages = json.loads((out / "stages.json").read_text())
    assert [name for name, stage in stages.items() if stage["done"]] == ["simulate", "train_image"]
    image = out / "image" / "checkpoints" / "last.ckpt"
    before = image.stat().st_mtime_ns
    capsys.readouterr()
    run(command)
    said = capsys.readouterr().out
    assert said.count("done before") == 2
    assert image.stat().st_mtime_ns == before
    for name in ("image", "discriminator"):  # trained for as long as demo.yaml says
        file = out / name / "checkpoints" / "last.ckpt"
        assert torch.load(file, weights_only=False)["global_step"] == 4
    assert "report.html" in said
    assert "persistence" in said  # the table of scores
    summary = json.loads((out / "summary.json").read_text())
    trained = summary["seconds"]["train_discriminator"]
    assert trained > stages["train_discriminator"]["seconds"] > 0  # both attempts count
    assert set(summary["seconds"]) >= {"simulate", "train_image", "evaluate", "total"}
    assert summary["machine"]["cores"] >= 1
    run(command)
    assert capsys.readouterr().out.count("done before") == 4


@pytest.mark.slow
def test_a_contest_trains_everyone_and_tells_who_is_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    experiment = tmp_path / "turbulence"
    experiment.mkdir()
    (experiment / "cube.yaml").write_text(
        "frames: 40\ntrajectories: 10\nprogress: false\n"
        "parameters: {resolution: 24, output_resolution: 16, spin_up: 4.0}\n"
    )
    for name in ("image", "discriminator"):
        shrunk(name, experiment, 3)
    (experiment / "contest.yaml").write_text(
        "seeds: 2\n"
        "models: [image, discriminator]\n"
        "systems:\n"
        "  guided: {model: discriminator, sampling: {steps: 2}}\n"
        "  unguided: {model: discriminator, sampling: {steps: 2, scale: 0.0}, free_run: false}\n"
        "forecasts: {initial_states: 3, members: 3, steps: 3}\n"
        "free_run: {members: 2, steps: 12}\n"
        "compare: {features: null, bootstrap: 50}\n"
    )
    out, results = tmp_path / "out", tmp_path / "results"
    contest = ["contest", "--experiment", str(experiment), "--out", str(out)]
    contest += ["--results", str(results)]
    run(contest)
    summary = json.loads((results / "summary.json").read_text())
    systems = summary["systems"]
    assert set(systems) == {"guided", "unguided", "persistence", "climatology"}
    guided = systems["guided"]
    for lead in ("1", "2", "3"):
        by_seed = [curve[lead] for curve in guided["crps_by_seed"]]
        assert len(by_seed) == 2
        assert by_seed[0] != by_seed[1]
        assert guided["crps"][lead] == pytest.approx(sum(by_seed) / 2)
        low, high = (guided["crps_interval"][end][lead] for end in ("low", "high"))
        assert low < min(by_seed)
        assert max(by_seed) < high
    assert guided["free_run"]["steps"] == 12
    assert guided["training_flops"] > systems["persistence"].get("training_flops", 0)
    assert guided["image_model_training_flops"] > 0
    assert guided["evaluations_per_frame"] == 3
    page = (results / "summary.md").read_text()
    assert f"| guided | {guided['crps']['1']:.3g} |" in page
    assert all((results / f"summary_{name}.svg").is_file() for name in ("crps", "stability"))
    capsys.readouterr()
    run(contest)
    assert capsys.readouterr().out.count("done before") == 1 + 2 * (2 + 3 + 1)

    (experiment / "ablation.yaml").write_text(
        "seeds: 1\n"
        "models:\n"
        "  - image\n"
        "  - {config: discriminator, name: plain, options: {model.init_args.history_noise: 0.5}}\n"
        "systems:\n"
        "  guided: {model: discriminator, sampling: {steps: 2}}\n"
        "  plain: {model: plain, sampling: {steps: 2}, free_run: false}\n"
        "forecasts: {initial_states: 3, members: 3, steps: 3}\n"
        "free_run: {members: 2, steps: 12}\n"
        "compare: {features: null, bootstrap: 50}\n"
    )
    run([*contest, "--rules", "ablation.yaml", "--together", "1"])
    assert capsys.readouterr().out.count("done before") == 1 + 1  # data and image model
    assert (out / "seed0" / "ablation" / "guided_forecast.zarr").exists()  # its own
    ablation = json.loads((results / "ablation.json").read_text())
    assert set(ablation["systems"]) == {"guided", "plain", "persistence", "climatology"}
    assert ablation["systems"]["guided"]["crps"] == pytest.approx(guided["crps_by_seed"][0])
    plain = load_model(out / "seed0" / "plain" / "checkpoints" / "last.ckpt")
    assert plain.hparams["history_noise"] == 0.5
    assert json.loads((results / "summary.json").read_text()) == summary
