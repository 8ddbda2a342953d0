"""The command line: `dyngen VERB ...`.

`fit`, `validate`, `test` and `predict` are Lightning's own command line, for any model and
data module named in a YAML. The other verbs are functions whose arguments are options.
Whatever goes wrong with an input is told in one sentence; set DYNGEN_TRACEBACK=1 for the rest.
"""

from __future__ import annotations

import importlib
import itertools
import logging
import os
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from typing import Any

from dyngen.options import OptionParser, nearest, sentence

LIGHTNING_VERBS = ("fit", "validate", "test", "predict")

# Verbs whose first words are the values of an option, and whether there may be several.
WORDS = {
    "evaluate": ("rollouts", True),
    "compare": ("rollouts", True),
    "calibrate": ("rollout", False),
    "to-weatherbench": ("rollout", False),
    "drift": ("rollout", False),
    "inspect": ("cube", False),
    "rechunk": ("cube", False),
    "extract-motion": ("videos", True),
    "animate": ("image", False),
    "view": ("image", False),
}

IDLE_TALK = ("💡 Tip", "TPU available", "GPU available: False")

USAGE = """usage: dyngen VERB [options]

train and measure, each with --config FILE (Lightning's command line):
  fit                  train a model
  validate             measure a model on held-out data
  test                 measure a model on test data
  predict              run a model over data

make and use:
  simulate turbulence  make a Zarr cube of forced two-dimensional turbulence
  simulate garden      make a Zarr of things that sway, with their true motion
  extract-motion VIDEO ...
                       motion from videos by optical flow, into a Zarr
  animate [IMAGE]      a film from a picture and a motion, given or sampled
  view [IMAGE]         a page on which a picture sways when it is pulled
  rollout              sample an ensemble of trajectories from a trained model into a Zarr
  calibrate ROLLOUT --reference CUBE
                       a quantile map from forecasts of one step, for long rollouts
  settle               shifts of each cell that give long rollouts the mean of a cube
  to-weatherbench ROLLOUT
                       write a rollout, or a cube, in the layout that WeatherBench 2 evaluates
  evaluate ROLLOUT ... --reference CUBE
                       score rollouts of any origin against a cube of what came true
  compare ROLLOUT ROLLOUT ... --reference CUBE
                       the same for several, and who is ahead
  drift ROLLOUT --reference CUBE
                       how far a run of many years strays, beside how far the truth does
  contest              train competing systems anew, roll out, compare
  garden               train the models of motion on the garden, and measure them
  rendering            train the renderer on the garden, and measure what it renders
  inspect CUBE         say what a cube holds, how fast it streams, and what would be faster
  rechunk CUBE         write a cube again with other chunks
  demo                 everything in turn: data, training, rollouts, scores, report

`dyngen VERB --help` lists the options of each; `dyngen fit --config FILE --print_config` shows what
a configuration comes to.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, on `sys.argv` by default.

    Raises:
        SystemExit: With status 2 and one sentence on standard error when an input is at fault, 130
            when interrupted.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _log_to_terminal()
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(USAGE)
        return
    try:
        run(arguments)
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted; the same command goes on from what is on disk\n")
        sys.exit(130)
    except (ValueError, OSError, ArgumentError, ImportError) as error:
        if os.environ.get("DYNGEN_TRACEBACK"):
            raise
        sys.stderr.write(f"dyngen: {sentence(error, _config_files(arguments))}\n")
        sys.exit(2)


def run(arguments: Sequence[str]) -> None:
    """Run one verb; errors are raised as they are.

    Raises:
        ValueError: For an unknown verb, or whatever the verb raises.
    """
    verb, *rest = arguments
    _quieten()
    if verb in LIGHTNING_VERBS:
        from dyngen.experiment import ExperimentCLI

        try:
            ExperimentCLI(arguments)
        except RuntimeError as error:
            if not str(error).startswith("Error(s) in loading state_dict"):
                raise
            detail = " ".join(str(error).split())[:200]
            raise ValueError(
                f"the checkpoint does not fit the model ({detail}): it was made with another "
                "network or by another version; train again, or give its own configuration."
            ) from error
        return
    functions = _functions()
    name = verb
    if verb == "simulate":
        if not rest or rest[0] in ("-h", "--help"):
            sys.stdout.write("usage: dyngen simulate turbulence|garden --out OUT.zarr [options]\n")
            return
        name, *rest = (f"simulate {rest[0]}", *rest[1:])
    if name in WORDS:
        rest = _as_option(name, *WORDS[name], rest)
    if name not in functions:
        verbs = [*LIGHTNING_VERBS, *functions]
        raise ValueError(f"there is no verb '{name}'{nearest(name, verbs)} See dyngen --help.")
    from jsonargparse import auto_cli

    auto_cli(
        functions[name](),
        args=rest,
        as_positional=False,
        exit_on_error=False,
        allow_abbrev=False,
        prog=f"dyngen {name}",
        parser_mode="omegaconf",
        parser_class=_options(name),
    )


def _options(verb: str) -> type[OptionParser]:
    if verb not in ("rollout", "settle"):
        return OptionParser
    from dyngen.forecast import RolloutOptions

    return RolloutOptions


def _functions() -> dict[str, Callable[[], Callable[..., Any]]]:
    """Verbs and how to import what they call: only what is asked for is imported."""

    def lazily(module: str, name: str) -> Callable[[], Callable[..., Any]]:
        return lambda: getattr(importlib.import_module(module), name)

    return {
        "simulate turbulence": lazily("data_modules.simulated", "write_turbulence"),
        "simulate garden": lazily("data_modules.simulated_garden", "write_garden"),
        "extract-motion": lazily("data_modules.extract_motion", "extract_motion"),
        "animate": lazily("dyngen.animate", "animate"),
        "view": lazily("dyngen.view.page", "view"),
        "rollout": lazily("dyngen.forecast", "forecast"),
        "calibrate": lazily("dyngen.calibrate", "calibrate"),
        "settle": lazily("dyngen.settle", "settle"),
        "to-weatherbench": lazily("dyngen.weatherbench", "to_weatherbench"),
        "evaluate": lazily("dyngen.evaluation", "evaluate_rollouts"),
        "compare": lazily("dyngen.evaluation", "compare_rollouts"),
        "drift": lazily("dyngen.drift", "drift"),
        "contest": lazily("dyngen.contest", "contest"),
        "garden": lazily("dyngen.garden", "garden"),
        "rendering": lazily("dyngen.rendering", "rendering"),
        "inspect": lazily("data_modules.inspect", "inspect"),
        "rechunk": lazily("data_modules.rechunk", "rechunk"),
        "demo": lazily("dyngen.demo", "demo"),
    }


def _as_option(verb: str, option: str, many: bool, arguments: Sequence[str]) -> list[str]:
    """The words that a verb starts with as its first option: `inspect CUBE` is `--cube CUBE`.

    Raises:
        ValueError: For more words than the verb takes.
    """
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), arguments))
    if len(words) > 1 and not many:
        raise ValueError(f"dyngen {verb} takes one {option}, not {' and '.join(words)}.")
    each = f"--{option}+=" if many else f"--{option}="
    return [f"{each}{word}" for word in words] + list(arguments[len(words) :])


def _log_to_terminal() -> None:
    """Show this library's own log lines as they are; Lightning shows its own."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("dyngen", "data_modules"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)


def _quieten() -> None:
    """Hide what a user of this command line can do nothing about."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    for message in (
        ".*does not have many workers.*",
        ".*isinstance\\(treespec, LeafSpec\\).*",
        ".*LightningCLI's args parameter is intended.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*smaller than the logging interval.*",
        '.*ckpt_path="last".*there is no last checkpoint.*',
        ".*`ckpt_path=.last.` is set, but there is no last checkpoint.*",
        ".*Precision bf16-mixed is not supported.*",
        ".*module\\(s\\) in eval mode at the start of training.*",  # the frozen image model
        ".*loading a checkpoint outside the 'fit' stage.*",
    ):
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: not record.getMessage().startswith(IDLE_TALK)
    )


def _config_files(arguments: Sequence[str]) -> list[str]:
    """Configuration files named on a command line."""
    pairs = zip(arguments, [*arguments[1:], ""], strict=True)
    files = [after for option, after in pairs if option in ("--config", "-c")]
    return files + [a.partition("=")[2] for a in arguments if a.startswith("--config=")]
