"""The door for image models from elsewhere: a `diffusers` folder or a state_dict, used unchanged.

Either becomes a denoiser and a plain dictionary, `source`, that suffices to build the untrained
module again: a checkpoint that embeds the weights needs neither the folder nor the file any more.
What a DDPM network sees (`x_t`, an integer timestep) is `x_sigma` after scaling and a label that
is interpolated between its timesteps.

Frames here have unit variance, while image models are mostly trained on values in [-1, 1]. The
affine map between the two, `seen = scale * frame + offset`, is read from `dyngen.json` in the
folder (or the JSON file beside a state_dict); see :func:`range_of_frames`.
"""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dyngen.diffusion.denoiser import Denoiser, Parameterisation, per_sample, quarter_log
from dyngen.diffusion.noise import Timestep, linear_betas

logger = logging.getLogger(__name__)

PREDICTIONS: dict[str, Parameterisation] = {
    "epsilon": "eps",
    "v_prediction": "v",
    "sample": "x0",
}
DIFFUSERS_UNET = "diffusers.UNet2DModel"
SETTINGS = "dyngen.json"
STATE_DICT_SUFFIXES = {".pt", ".pth", ".bin", ".safetensors"}


class ImportedDenoiser(Denoiser):
    """A denoiser whose network was trained on `scale * frame + offset` in place of the frame.

    Noise of level sigma on a frame is noise of level `scale * sigma` on what the network sees, so
    that `D(x, sigma) = (D'(scale x + offset, scale sigma) - offset) / scale` exactly.

    Args:
        network: As of :class:`~dyngen.diffusion.denoiser.Denoiser`.
        parameterisation: What it predicts.
        sigma_data: Standard deviation of what it sees (edm alone).
        betas: The variances of its DDPM timesteps, or None for a network that takes
            `log(sigma) / 4`.
        scale: A positive number.
        offset: A number, or one for each channel.

    Raises:
        ValueError: If the scale is not positive or a beta is outside (0, 1).
    """

    def __init__(
        self,
        network: nn.Module,
        parameterisation: Parameterisation,
        sigma_data: float = 1.0,
        betas: Tensor | None = None,
        scale: float = 1.0,
        offset: float | Sequence[float] = 0.0,
    ) -> None:
        if not scale > 0:
            raise ValueError(f"scale is {scale}; it must be a positive number.")
        label = quarter_log if betas is None else Timestep(betas)
        super().__init__(network, parameterisation, sigma_data, label)
        self.scale = float(scale)
        self.offset = torch.as_tensor(offset, dtype=torch.float32).reshape(-1, 1, 1)

    def forward(self, x: Tensor, sigma: Tensor, **conditioning: Any) -> Tensor:
        """The estimate of the clean frames, as of :meth:`Denoiser.forward`."""
        offset = self.offset.to(x)
        sigma = self.scale * per_sample(sigma, x)
        seen = super().forward(self.scale * x + offset, sigma, **conditioning)
        return (seen - offset) / self.scale

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """The weight of the squared error of frames; see :meth:`Denoiser.loss_weight`."""
        return self.scale**2 * super().loss_weight(self.scale * sigma)


class DiffusersNetwork(nn.Module):
    """A `diffusers` UNet2DModel called as our networks are: `(x, timestep (B,)) -> output`.

    A network that also predicts its variance (twice the channels) gives its mean only.
    """

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet
        self.looks_up = unet.config.time_embedding_type == "learned"

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """Map scaled frames (B, C, H, W) at timesteps (B,) to an output of their shape."""
        if self.looks_up:  # a table has rows for whole timesteps only
            label = label.round().long()
        output: Tensor = self.unet(x, label, return_dict=False)[0]
        return output[:, : x.shape[1]]


def denoiser_from_folder(path: str | Path) -> tuple[Denoiser, dict[str, Any]]:
    """The denoiser of a `diffusers` unconditional U-Net, and what rebuilds it without the folder.

    Args:
        path: A folder that `UNet2DModel.save_pretrained` wrote, with `scheduler_config.json` in
            it or in `../scheduler`, or one of a whole pipeline, with `unet/` and `scheduler/`.
            Without a scheduler the network is taken to predict the noise of the linear schedule
            of Ho et al. 2020, with a warning. `dyngen.json` in it may hold `scale` and `offset`.

    Returns: the denoiser with its weights, in evaluation mode, and the dictionary for
        :func:`denoiser_from_config`.

    Raises:
        ValueError: If it is no such folder, or the model is of a kind that cannot be used here.
    """
    folder = Path(path)
    unet_folder = folder / "unet" if (folder / "unet").is_dir() else folder
    config = _read_json(unet_folder / "config.json", "the configuration of a diffusers U-Net")
    _check_unet(config, unet_folder / "config.json")
    candidates = [
        folder / "scheduler" / "scheduler_config.json",
        folder / "scheduler_config.json",
        folder.parent / "scheduler" / "scheduler_config.json",
    ]
    scheduler_file = next((file for file in candidates if file.is_file()), None)
    if scheduler_file is None:
        logger.warning(
            "%s has no scheduler_config.json; it is taken to predict the noise of the linear "
            "schedule of DDPM (1000 steps, betas from 0.0001 to 0.02).",
            folder,
        )
        betas, prediction = linear_betas(), "epsilon"
    else:
        betas, prediction = _read_schedule(scheduler_file)
    source = _source(
        {"class_path": DIFFUSERS_UNET, "init_args": _plain(config)},
        folder,
        {"parameterisation": PREDICTIONS[prediction], "betas": betas.tolist()},
        _optional_json(folder / SETTINGS, {"scale", "offset"}),
    )
    unet_class = _diffusers().UNet2DModel
    try:
        unet, loaded = unet_class.from_pretrained(
            str(unet_folder),
            local_files_only=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except Exception as error:  # diffusers raises many kinds
        raise ValueError(
            f"{unet_folder} holds no weights that fit its config.json ({_first_line(error)}); save "
            "the U-Net again with save_pretrained."
        ) from error
    if loaded["missing_keys"] or loaded["unexpected_keys"]:
        raise ValueError(
            f"The weights in {unet_folder} do not fit its config.json: missing "
            f"{sorted(loaded['missing_keys'])[:3]}, unexpected "
            f"{sorted(loaded['unexpected_keys'])[:3]}; save the U-Net again with save_pretrained."
        )
    denoiser = denoiser_from_config(source)
    cast(DiffusersNetwork, denoiser.network).unet.load_state_dict(unet.float().state_dict())
    return denoiser.eval(), source


def denoiser_from_state_dict(
    path: str | Path, settings: Mapping[str, Any] | None = None
) -> tuple[Denoiser, dict[str, Any]]:
    """The denoiser of any network whose weights are a bare state_dict.

    Args:
        path: A `.safetensors` file, or a `.pt` that `torch.save` wrote; keys may have a common
            prefix (`module.`, say).
        settings: What the file does not say, by default the JSON file beside it of the same stem:
            `network`, as `{"class_path": ..., "init_args": {...}}` of an `nn.Module` called as
            `network(c_in x, label)` (or the arguments of `UNet2d` alone), and optionally
            `parameterisation` (edm), `sigma_data` (1), `betas` (None: labels are `log(sigma) / 4`),
            `scale` (1) and `offset` (0).

    Returns: as of :func:`denoiser_from_folder`.

    Raises:
        ValueError: If a file is missing or damaged, or the weights do not fit the network.
    """
    path = Path(path)
    beside = path.with_suffix(".json")
    if settings is None:
        settings = _read_json(beside, f"the settings of the network whose weights are {path.name}")
    unknown = set(settings) - {"network", *DEFAULTS}
    if unknown or "network" not in settings:
        raise ValueError(
            f"The settings of {path} have keys {sorted(settings)}; they need 'network' and may "
            f"have {', '.join(DEFAULTS)}."
        )
    network = dict(settings["network"])
    if "class_path" not in network:
        network = {"class_path": "dyngen.networks.unet.UNet2d", "init_args": network}
    given = {key: value for key, value in settings.items() if key != "network"}
    source = _source(_plain(network), path, given)
    denoiser = denoiser_from_config(source)
    module = denoiser.network
    if isinstance(module, DiffusersNetwork):
        module = module.unet
    weights = _without_prefix(_read_state_dict(path), set(module.state_dict()))
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        missing = sorted(set(module.state_dict()) - set(weights))
        unexpected = sorted(set(weights) - set(module.state_dict()))
        detail = (
            f"missing {missing[:3]}, unexpected {unexpected[:3]}"
            if missing or unexpected
            else "weights of other shapes"
        )
        raise ValueError(
            f"{path} does not fit {network['class_path']} with init_args "
            f"{network.get('init_args', {})}: {detail}; give the arguments it was trained with."
        ) from error
    return denoiser.eval(), source


DEFAULTS: dict[str, Any] = {
    "parameterisation": "edm",
    "sigma_data": 1.0,
    "betas": None,
    "scale": 1.0,
    "offset": 0.0,
}


def denoiser_from_config(source: Mapping[str, Any]) -> Denoiser:
    """The untrained denoiser that `source` describes; its weights come from a state_dict.

    Args:
        source: The dictionary that :func:`denoiser_from_folder` or
            :func:`denoiser_from_state_dict` gave; numbers, strings and lists only.

    Raises:
        ValueError: If it names no network, or one that is not installed.
    """
    description = source.get("network")
    if not isinstance(description, Mapping) or "class_path" not in description:
        raise ValueError(
            "The description of the image model names no network; it was not made by "
            "denoiser_from_folder or denoiser_from_state_dict."
        )
    name, arguments = description["class_path"], dict(description.get("init_args") or {})
    if name == DIFFUSERS_UNET:
        network: nn.Module = DiffusersNetwork(_diffusers().UNet2DModel.from_config(arguments))
    else:
        kind = _network_class(name)
        try:
            network = kind(**arguments)
        except TypeError as error:
            raise ValueError(f"{name} cannot be made of {arguments}: {error}.") from error
    settings = DEFAULTS | {key: source[key] for key in DEFAULTS if key in source}
    betas = settings.pop("betas")
    return ImportedDenoiser(
        network,
        betas=None if betas is None else torch.tensor(betas, dtype=torch.float64),
        **settings,
    )


def range_of_frames(
    low: float, high: float, mean: float, std: float, limits: tuple[float, float] = (-1.0, 1.0)
) -> tuple[float, float]:
    """`scale` and `offset` of a model that was trained on physical values mapped to a range.

    Args:
        low, high: The physical values that were mapped to `limits`.
        mean, std: The normalisation of the cube, `frame = (physical - mean) / std`.
        limits: What the model saw them as, [-1, 1] for most image models.

    Raises:
        ValueError: If low is not below high.
    """
    if not low < high:
        raise ValueError(f"low is {low} and high is {high}; low must be below high.")
    slope = (limits[1] - limits[0]) / (high - low)
    return slope * std, limits[0] + slope * (mean - low)


def _source(network: dict[str, Any], path: Path, *settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in order of precedence, checked, as a plain dictionary."""
    source = {"network": network, "path": path.name} | DEFAULTS
    for layer in settings:
        source |= layer
    if source["parameterisation"] not in {"edm", *PREDICTIONS.values()}:
        raise ValueError(
            f"{path}: parameterisation is '{source['parameterisation']}'; give edm, eps, v or x0."
        )
    return source


def _diffusers() -> Any:
    try:
        return importlib.import_module("diffusers")
    except ImportError as error:
        raise ValueError(
            "This image model is a diffusers U-Net, and diffusers is not installed; run "
            "`pip install 'dyngen[pretrained]'`."
        ) from error


def _network_class(name: str) -> type[nn.Module]:
    module, _, attribute = str(name).rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"There is no network class '{name}'; give its whole path, such as "
            "dyngen.networks.unet.UNet2d."
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ValueError(f"{name} is not a torch.nn.Module; give the class of a network.")
    return kind


def _read_json(file: Path, what: str) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(f"There is no {file}, {what}; give the path of a model that has one.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}); write it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no JSON object; it must be {what}.")
    return content


def _optional_json(file: Path, keys: set[str]) -> dict[str, Any]:
    if not file.is_file():
        return {}
    content = _read_json(file, "settings of an imported model")
    if unknown := sorted(set(content) - keys):
        raise ValueError(f"{file} has unknown keys {unknown}; it may have {sorted(keys)}.")
    return content


def _check_unet(config: Mapping[str, Any], file: Path) -> None:
    kind = config.get("_class_name")
    if kind != "UNet2DModel":
        raise ValueError(
            f"{file} describes a {kind}; only unconditional UNet2DModel networks can be the image "
            "model."
        )
    embedding = config.get("time_embedding_type", "positional")
    if embedding == "fourier":
        raise ValueError(
            f"{file}: time_embedding_type is fourier, of a variance-exploding score model; only "
            "networks trained on DDPM timesteps (positional or learned) can be imported."
        )
    if config.get("class_embed_type") or config.get("num_class_embeds"):
        raise ValueError(
            f"{file} describes a class-conditional U-Net; the image model must be unconditional."
        )
    channels, out = config.get("in_channels", 3), config.get("out_channels", 3)
    if out not in {channels, 2 * channels}:
        raise ValueError(
            f"{file}: {channels} channels go in and {out} come out; a denoiser gives back as many "
            "as it takes (or twice as many, with a learned variance)."
        )


def _read_schedule(file: Path) -> tuple[Tensor, str]:
    """The betas of a diffusers scheduler's configuration, and its prediction type."""
    config = _read_json(file, "the configuration of a diffusers scheduler")
    if not {"beta_schedule", "beta_start", "trained_betas"} & set(config):
        raise ValueError(
            f"{file} describes a {config.get('_class_name')}, which has no betas; only models "
            "trained with a DDPM schedule can be imported."
        )
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise ValueError(
            f"{file}: prediction_type is '{prediction}'; only {', '.join(PREDICTIONS)} are known."
        )
    # Every scheduler with betas shares their names; those of other samplers are DDPM's.
    betas = _diffusers().DDPMScheduler.from_config(config).betas.to(torch.float64)
    if not bool(((betas > 0) & (betas < 1)).all()):
        raise ValueError(
            f"{file}: a beta is not strictly between 0 and 1 (rescale_betas_zero_snr, perhaps); a "
            "noise level without signal has no place among the sigmas."
        )
    return betas, prediction


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"There is no file {path}; give the path of a state_dict that exists.")
    try:
        if path.suffix == ".safetensors":
            load_file = importlib.import_module("safetensors.torch").load_file
            content = load_file(str(path))
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{path} needs the package safetensors; run `pip install 'dyngen[pretrained]'`."
        ) from error
    except Exception as error:  # torch and safetensors raise many kinds for a damaged file
        raise ValueError(
            f"{path} cannot be read as a state_dict ({type(error).__name__}); it may be cut short."
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not (isinstance(content, dict) and content) or not all(
        isinstance(value, Tensor) for value in content.values()
    ):
        raise ValueError(f"{path} holds no state_dict, a dictionary of tensors by name.")
    return content


def _without_prefix(weights: dict[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    """The weights under the names the network knows, if they only have a common prefix before."""
    if wanted & set(weights):
        return weights
    first = next(iter(weights))
    for place, letter in enumerate(first):
        stripped = {name.removeprefix(first[: place + 1]): w for name, w in weights.items()}
        if letter == "." and set(stripped) == wanted:
            return stripped
    return weights


def _plain(value: Any) -> Any:
    """Lists, dictionaries, numbers and strings only, as `torch.load(weights_only=True)` reads."""
    return json.loads(json.dumps(value))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")[:200]
