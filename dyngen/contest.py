"""Systems trained on the same data, rolled out from the same states, side by side.

Everything that a contest needs is in one YAML of an experiment. Each seed trains all models anew;
the spread between trainings is part of the result.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from dyngen.report.contest_figure import MANY, rows_by_system
from dyngen.report.contest_table import contest_markdown
from dyngen.report.figures import score_figures
from dyngen.report.provenance import machine
from dyngen.report.summary import by_variable
from dyngen.rollout.sampling import Sampling
from dyngen.stages import Stage, read_stages, run_stages, seconds_table

CONTEST = "contest.yaml"
LINES = ("crps", "spread_skill", "autocorrelation")  # of all systems in one pair of axes
FIGURES = (*LINES, "stability", "free_spectrum", "free_bias_map")

OF_COST = {
    "parameters": ("parameters",),
    "training_flops": ("training", "flops"),
    "training_seconds": ("training", "seconds"),
    "image_model_training_flops": ("image_model_training", "flops"),
    "evaluations_per_frame": ("evaluations_per_frame",),
    "flops_per_frame": ("flops_per_frame",),
    "seconds_per_frame": ("seconds_per_frame",),
}


@dataclass(frozen=True)
class Training:
    """A model to train.

    Args:
        config: Name of its configuration in the experiment's folder.
        name: Folder of its checkpoints, in place of what the configuration says.
        options: Options of `dyngen fit`, in place of what the configuration says.
        after: Trainings listed before it that it waits for, by name; by default the first one.
    """

    config: str
    name: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    after: Sequence[str] | None = None


@dataclass(frozen=True)
class System:
    """One of those who compete.

    Args:
        model: Folder of its checkpoints within a run.
        sampling: How its frames are sampled.
        free_run: Whether it runs on freely too.
    """

    model: str
    sampling: Sampling
    free_run: bool = True


@dataclass(frozen=True)
class Contest:
    """What a file of rules such as `contest.yaml` says.

    Args:
        seeds: Trainings of each model.
        models: What to train; those that do not wait for each other may train side by side.
        systems: Those who compete; the first is what others are held against.
        forecasts: Arguments of `dyngen rollout` for the forecasts.
        free_run: Likewise for one long run.
        compare: Further arguments of `dyngen compare`.
        cube: Path of the data, or several, the one to be held against first; None simulates it.
        summary: Name of the files with the figures, without ending.
    """

    seeds: int
    models: Sequence[Training]
    systems: Mapping[str, System]
    forecasts: Mapping[str, Any]
    free_run: Mapping[str, Any]
    compare: Mapping[str, Any] = field(default_factory=dict)
    cube: str | Sequence[str] | None = None
    summary: str = "summary"


def contest(
    experiment: Path = Path("experiments/turbulence"),
    out: Path | None = None,
    results: Path | None = None,
    seeds: int | None = None,
    rules: str = CONTEST,
    together: int | None = None,
) -> None:
    """Train every system, roll out, compare, and write down who is ahead.

    Args:
        experiment: Folder with `cube.yaml`, `contest.yaml` and the configurations it names.
        out: Folder of everything that is trained; `runs/NAME/contest` by default. What is there
            already is not trained again, so that an ablation may follow a contest.
        results: Folder for `summary.json`, `summary.md` and its figures; `docs/results/NAME` by
            default.
        seeds: Trainings of each model, in place of what `contest.yaml` says.
        rules: Another file than `contest.yaml`, such as `ablation.yaml`. Its figures go to a file
            of its name, `ablation.json`.
        together: Trainings and rollouts that run side by side, each on its share of the cores; by
            default as many as there are cores, at most four, or 1 with a GPU.

    Raises:
        ValueError: If the experiment's files are not there or are not understood.
    """
    name = experiment.name
    out = out or Path("runs") / name / "contest"
    results = results or Path("docs/results") / name
    agreed = read_contest(experiment / rules, seeds)
    reports = [_report(out, seed, rules) for seed in range(agreed.seeds)]
    out.mkdir(parents=True, exist_ok=True)
    console = Console()
    trained = ", ".join(model.name or model.config for model in agreed.models)
    console.print(f"[bold]{name}[/]: {agreed.seeds} trainings of {trained}")
    stages = _stages(experiment, out, agreed, reports)
    run_stages(out, stages, console, together)
    summary = _summary(reports)
    chosen = "" if rules == CONTEST else f" --rules {rules}"
    chosen += f" --seeds {seeds}" if seeds else ""
    summary["command"] = f"dyngen contest --experiment {experiment.as_posix()}{chosen}"
    took = {stage.name for stage in stages}
    summary["seconds"] = {k: v["seconds"] for k, v in read_stages(out).items() if k in took}
    results.mkdir(parents=True, exist_ok=True)
    told = agreed.summary if rules == CONTEST else Path(rules).stem
    figures = results / f"{told}.json"
    figures.write_text(json.dumps(summary, indent=2) + "\n")
    _write_page(results, told, f"{name}: {Path(rules).stem}", summary, reports[0])
    console.print(_table(summary))
    console.print(seconds_table({"total": sum(summary["seconds"].values())}))
    pages = " ".join(str(report / "report.html") for report in reports)
    console.print(f"figures  {figures}\nreports  {pages}", soft_wrap=True)


def read_contest(path: Path, seeds: int | None = None) -> Contest:
    """What a `contest.yaml` says.

    Raises:
        ValueError: If it is missing, or a key is missing or unknown, naming it.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give the folder of an experiment that has one.")
    given: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    try:
        systems = {
            name: System(**(settings | {"sampling": Sampling(**settings["sampling"])}))
            for name, settings in given.pop("systems").items()
        }
        models = [
            Training(model) if isinstance(model, str) else Training(**model)
            for model in given.pop("models")
        ]
        rules = Contest(
            models=models, systems=systems, **(given | ({"seeds": seeds} if seeds else {}))
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} is not understood ({error}); see the one of turbulence."
        ) from error
    before: list[str] = []
    for model in models:
        name = model.name or model.config
        for other in model.after or ():
            if other not in before:
                raise ValueError(
                    f"{path}: {name} waits for {other}, which is not trained before it; list it "
                    "above, or leave it out of `after`."
                )
        before.append(name)
    return rules


def _report(out: Path, seed: int, rules: str) -> Path:
    """Folder of a seed's rollouts, scores and report."""
    folder = out / f"seed{seed}"
    return folder if rules == CONTEST else folder / Path(rules).stem


def _stages(experiment: Path, out: Path, rules: Contest, reports: Sequence[Path]) -> list[Stage]:
    stages = []
    path: str | list[str]
    made_first: tuple[str, ...] = ()
    if rules.cube is None:
        path = str(out / "cube.zarr")
        stages.append(
            Stage(
                "cube",
                "Make the data",
                (
                    *("simulate", experiment.name, "--config", str(experiment / "cube.yaml")),
                    *("--out", path, "--overwrite", "true"),
                ),
                Path(path).exists,
            )
        )
        made_first = ("cube",)
    else:
        path = rules.cube if isinstance(rules.cube, str) else list(rules.cube)
    reference = path if isinstance(path, str) else path[0]
    versions = [_version(experiment, model) for model in rules.models]
    for seed in range(rules.seeds):
        folder = out / f"seed{seed}"
        stage = partial(Stage, folder=folder)
        data = _options({"data.init_args.path": path})
        trained = [f"seed{seed}/{model.name or model.config}" for model in rules.models]
        trains = dict(zip(versions, trained, strict=True))
        for number, model in enumerate(rules.models):
            name = model.name or model.config
            if model.after is None:
                waits = tuple(trained[:1] if number else ())
            else:
                waits = tuple(f"seed{seed}/{other}" for other in model.after)
            options = dict(model.options)
            if model.name:
                options["trainer.logger.init_args.version"] = model.name
            config = ("--config", str(experiment / f"{model.config}.yaml"))
            stages.append(
                stage(
                    f"seed{seed}/{name}",
                    f"Train {name.replace('_', ' ')}, seed {seed}",
                    ("fit", *config, *data, "--seed_everything", str(seed), *_options(options)),
                    after=made_first + waits,
                )
            )
        made, rollouts = [], []
        report = reports[seed]  # rollouts lie there too: other rules have others of the same name
        told = report.relative_to(out).as_posix()
        for name, system in rules.systems.items():
            checkpoint = folder / system.model / "checkpoints" / "last.ckpt"
            common = ("rollout", "--model", str(checkpoint), *_options({"data.path": path}))
            sampling = asdict(system.sampling)  # all of it: the checkpoint has settings of its own
            how = _options({f"sampling.{key}": value for key, value in sampling.items()})
            kinds = [("forecast", {**rules.forecasts})]
            if system.free_run:
                kinds.append(("free_run", {"initial_states": 1, **rules.free_run}))
            for kind, sizes in kinds:
                store = report / f"{name}_{kind}.zarr"
                made.append(f"{name}={store}")
                rollouts.append(f"{told}/{name}_{kind}")
                stages.append(
                    stage(
                        rollouts[-1],
                        f"Roll out {name.replace('_', ' ')}, {kind.replace('_', ' ')}, seed {seed}",
                        (*common, "--out", str(store), *how, *_options(sizes)),
                        store.exists,
                        after=(trains[system.model],) if system.model in trains else tuple(trained),
                    )
                )
        stages.append(
            stage(
                f"{told}/compare",
                f"Compare, seed {seed}",
                (
                    *("compare", *made, "--reference", reference, "--out", str(report)),
                    *_options(rules.compare),
                ),
                (report / "report.html").exists,
                after=tuple(rollouts),
            )
        )
    return stages


def _version(experiment: Path, model: Training) -> str:
    """Folder of a training's checkpoints within a run."""
    path = experiment / f"{model.config}.yaml"
    if model.name or not path.is_file():  # that a file is missing, `fit` says
        return model.name or model.config
    version = OmegaConf.select(OmegaConf.load(path), "trainer.logger.init_args.version")
    return str(version or model.config)


def _options(values: Mapping[str, Any]) -> list[str]:
    """Values as words of a command line."""
    words: list[str] = []
    for key, value in values.items():
        # YAML has another word for what JSON calls Infinity.
        said = value if isinstance(value, str) else json.dumps(value).replace("Infinity", ".inf")
        words += [f"--{key}", said]
    return words


def _write_page(
    results: Path, told: str, title: str, summary: Mapping[str, Any], report: Path
) -> None:
    """Tables and the figures of the first seed, to be read beside the JSON."""
    scores = xr.load_dataset(report / "scores.nc", engine="h5netcdf")
    drawn: dict[str, list[str]] = {}
    for variable, of in by_variable(summary).items():
        drawings = score_figures(scores, variable or None)
        names: Sequence[str] = FIGURES
        if len(of["systems"]) > MANY:
            drawings["rows"] = rows_by_system(of["systems"])
            names = ("rows", *(name for name in FIGURES if name not in LINES))
        shown = [name for name in names if name in drawings]
        drawn[variable] = ["_".join(filter(None, (told, variable, n))) + ".svg" for n in shown]
        for name, file in zip(shown, drawn[variable], strict=True):
            drawings[name].savefig(
                results / file, facecolor="white", metadata={"Date": None}, bbox_inches="tight"
            )
    costs = json.loads((report / "summary.json").read_text()).get("costs", {})
    page = contest_markdown(title, summary, costs, drawn)
    (results / f"{told}.md").write_text(page)


def _summary(reports: Sequence[Path]) -> dict[str, Any]:
    """Figures of all seeds: means, with the spread between trainings beside them.

    Those of the first variable are `systems` and `truth`; where there are several, `variables` has
    the same of each.
    """
    known = [
        (
            json.loads((folder / "summary.json").read_text()),
            xr.load_dataset(folder / "scores.nc", engine="h5netcdf"),
        )
        for folder in reports
    ]
    variables = {}
    for number, name in enumerate(str(v) for v in known[0][1]["variable"].values):
        runs = [
            (
                {"costs": told.get("costs", {})} | by_variable(told, name)[name],
                of.isel(variable=number),
            )
            for told, of in known
        ]
        truth = [summary["autocorrelation"].get("truth", {}) for summary, _ in runs]
        variables[name] = {
            "systems": {system: _of_system(system, runs) for system in runs[0][0]["crps"]},
            "truth": {"autocorrelation": _mean(truth)},
        }
    first = next(iter(variables.values()))
    several = {"variables": variables} if len(variables) > 1 else {}
    return first | several | {"machine": machine(), "seed": list(range(len(reports)))}


def _of_system(name: str, runs: Sequence[tuple[dict[str, Any], xr.Dataset]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for score in ("crps", "spread_skill", "bias", "autocorrelation", "rmse", "crps_ratio"):
        curves = [summary.get(score, {}).get(name) for summary, _ in runs]
        if all(curves):
            found[score] = _mean(curves)
            if len(runs) > 1:
                found[f"{score}_by_seed"] = curves
    for score in ("crps_interval", "crps_ratio_interval"):
        known = [scores[score].sel(system=name) for _, scores in runs if score in scores]
        if known:
            ends = {
                "low": np.min([of.sel(bound="low").values for of in known], axis=0),
                "high": np.max([of.sel(bound="high").values for of in known], axis=0),
            }
            found[score] = {
                end: {str(i + 1): float(v) for i, v in enumerate(values)}
                for end, values in ends.items()
            }
    for score in ("std_ratio", "log_spectral_distance_db", "rank_distance_from_flat"):
        values = [summary.get(score, {}).get(name) for summary, _ in runs]
        found[score] = _average(values)
    free = [summary.get("free_run", {}).get(name) for summary, _ in runs]
    if all(free):
        keys = [k for k, v in free[0].items() if not isinstance(v, Mapping)]
        found["free_run"] = {key: _average([run[key] for run in free]) for key in keys}
    costs = [summary.get("costs", {}).get(name) for summary, _ in runs]
    for key, path in OF_COST.items():
        found[key] = _average([_dig(cost, path) for cost in costs])
    return {key: value for key, value in found.items() if value is not None}


def _dig(cost: Any, path: Sequence[str]) -> float | None:
    for key in path:
        cost = (cost or {}).get(key)
    return cost


def _average(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _mean(curves: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    return {key: _average([curve.get(key) for curve in curves]) for key in curves[0]}


def _table(summary: Mapping[str, Any]) -> Table:
    leads = ("1", "2", "5", "10", "20")
    table = Table("system", *(f"CRPS {lead}" for lead in leads), "spread/skill 1", box=None)
    for name, found in summary["systems"].items():
        cells = [found["crps"].get(lead) for lead in leads]
        cells.append(found.get("spread_skill", {}).get("1"))
        table.add_row(name, *("–" if cell is None else f"{cell:.3g}" for cell in cells))
    return table
