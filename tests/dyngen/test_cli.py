"""The command line: what a mistake is answered with, and that experiments are what they say."""

import subprocess
import sys
from pathlib import Path

import lightning.pytorch  # noqa: F401 (here its log takes the standard error of no one test)
import pytest
import yaml

from dyngen.cli import main
from dyngen.contest import read_contest

ROOT = Path(__file__).parents[2]
EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.yaml"))
INFORMATION = ("INFO: Seed set", "this CPU has no bf16")
RULES = ("contest", "ablation", "seeds", "shifts", "noise", "same_event", "interval")
CONTESTS = [path for path in EXPERIMENTS if path.stem in RULES]
CONFIGURATIONS = [path for path in EXPERIMENTS if path.stem not in RULES]
IMAGE = ROOT / "experiments" / "turbulence" / "image.yaml"


def answer(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What `dyngen` says on standard error to arguments that it refuses with status 2."""
    with pytest.raises(SystemExit) as refusal:
        main([str(argument) for argument in arguments])
    assert refusal.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    said = [line for line in lines if not line.startswith(INFORMATION)]
    assert len(said) == 1, lines
    return said[0]


def with_typo(tmp_path: Path, before: str, after: str) -> Path:
    text = IMAGE.read_text()
    assert before in text
    path = tmp_path / "typo.yaml"
    path.write_text(text.replace(before, after))
    return path


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("model:\n", "modle:\n", ["'modle", "did you mean 'model'"]),
        ("widths:", "width:", ["'width' is not a key of", "UNet2d", "did you mean 'widths'"]),
        ("max_steps:", "max_step:", ["trainer.max_step", "did you mean 'trainer.max_steps'"]),
        ("batch_size: 8", "batchsize: 8", ["'batchsize'", "did you mean 'batch_size'"]),
        ("models.ImageDDPM", "models.ImageDPM", ["ImageDPM", "did you mean 'ImageDDPM'"]),
        ("window_length: 1", "window_length: one", ["window_length", "one"]),
    ],
)
def test_a_typo_in_a_yaml_gets_one_sentence_with_the_nearest_key(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    before: str,
    after: str,
    words: list[str],
) -> None:
    path = with_typo(tmp_path, before, after)
    said = answer(capsys, "fit", "--config", path)
    assert "typo.yaml" in said
    for word in words:
        assert word in said


def test_what_a_constructor_refuses_is_told_as_it_says_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = with_typo(tmp_path, "widths: [64, 96, 128]", "widths: []")
    said = answer(capsys, "fit", "--config", path)
    assert "a U-Net has at least one width" in said
    assert "Union" not in said
    assert "Namespace" not in said


def test_a_typo_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    said = answer(capsys, "fit", "--config", IMAGE, "--trainer.max_step", 3)
    assert said == (
        "dyngen: there is no option --trainer.max_step; did you mean '--trainer.max_steps'?"
    )
    said = answer(
        capsys, "rollout", "--model", "a", "--data.path", "b", "--out", "c", "--membres=2"
    )
    assert said == "dyngen: there is no option --membres; did you mean '--members'?"


def test_an_unknown_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'rollout'?" in answer(capsys, "rolout")
    assert "did you mean 'simulate turbulence'?" in answer(capsys, "simulate", "turbulance")


def test_a_cube_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = answer(
        capsys, "fit", "--config", IMAGE, "--data.init_args.path", tmp_path / "nothing.zarr",
        "--trainer.logger.init_args.save_dir", tmp_path, "--trainer.enable_progress_bar", "false",
    )  # fmt: skip
    assert "nothing.zarr" in said


@pytest.mark.parametrize("path", CONTESTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_contests_name_what_there_is(path: Path) -> None:
    contest = read_contest(path)
    trained = set()
    for model in contest.models:
        config = yaml.safe_load((path.parent / f"{model.config}.yaml").read_text())
        trained.add(model.name or config["trainer"]["logger"]["init_args"]["version"])
    assert {system.model for system in contest.systems.values()} <= trained


def test_a_contest_with_a_mistake_is_told(tmp_path: Path) -> None:
    text = CONTESTS[0].read_text().replace("seeds:", "sedes:")
    (tmp_path / "contest.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"contest\.yaml is not understood .*sedes"):
        read_contest(tmp_path / "contest.yaml")
    with pytest.raises(ValueError, match="does not exist"):
        read_contest(tmp_path / "other.yaml")


def printed_config(path: Path) -> list[str]:
    """The command line that prints what an experiment comes to."""
    makes = ["simulate", path.parent.name]
    verb = {"rollout": ["rollout"], "settle": ["settle"], "cube": makes}.get(path.stem, ["fit"])
    changed = path.with_name("discriminator.yaml")  # by the one of the demo
    base = ["--config", str(changed)] if path.stem == "demo" else []
    return [*verb, *base, "--config", str(path), "--print_config"]


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_experiments_hold_only_what_differs_from_the_defaults_and_parse(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as done:
        main(printed_config(path))
    said = capsys.readouterr()
    assert not done.value.code, said.err
    whole, given = yaml.safe_load(said.out), yaml.safe_load(path.read_text())
    assert set(given) <= set(whole)


def test_a_key_within_a_key_of_a_configuration_can_be_changed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    config = ROOT / "experiments/speedy/rollout.yaml"
    with pytest.raises(SystemExit):
        main([*printed_config(config), "--data.splits.test", '["2009", "2010"]'])
    splits = yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]["splits"]
    assert splits["train"] == [1983, 2002]
    assert splits["test"] == [2009, 2010]


def test_the_installed_program_says_the_same() -> None:
    program = [sys.executable, "-c", "from dyngen.cli import main; main()"]
    done = subprocess.run(
        [*program, *printed_config(IMAGE)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert set(yaml.safe_load(IMAGE.read_text())) <= set(yaml.safe_load(done.stdout))


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    text = capsys.readouterr().out
    for verb in ("fit", "validate", "test", "predict", "simulate turbulence", "rollout", "demo"):
        assert verb in text
