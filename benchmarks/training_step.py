"""Seconds of a training step and of a sampling step, beside diffusers' U-Net of the same size.

- A training step of `ImageDDPM` (noise, loss, gradients, AdamW) as the turbulence experiment has
  it, on 32 frames of 32 x 32; the peer is the training step of diffusers' own tutorial with a
  `UNet2DModel` of as many parameters, to within a tenth. Ours is timed with frames folded into
  patches of 2, as in the experiment, and without, where both work at the same resolution.
- A sampling step: one denoised estimate and the sampler's update, likewise.
- Guided sampling beside unguided, per frame: a frame costs the image model's forward pass, and
  guided also a forward and a backward pass of the discriminator.

The limit is the time that the floating-point operations of ours would take at the speed of a
matrix product measured in the same rounds. All run in bfloat16 autocast, in turn, the first round
unrecorded; the medians are given, and the spread is (max - min) / median of ours.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dyngen.diffusion.denoiser import Denoiser
from dyngen.diffusion.guidance import discriminator_guidance, guide
from dyngen.diffusion.noise import edm_sigmas
from dyngen.diffusion.samplers import dpm_solver_pp_2m
from dyngen.models.image_ddpm import ImageDDPM
from dyngen.networks.discriminators import ForecastEnergy
from dyngen.networks.unet import UNet2d

BATCH, SIZE, STEPS, REPEATS, MATRIX = 32, 32, 4, 7, 1024
NETWORK: dict[str, Any] = {"channels": 1, "widths": (64, 96, 128), "blocks": 1}
Task = Callable[[], object]


def run() -> list[dict[str, Any]]:
    """One entry for each pair; see the module's own description."""
    torch.manual_seed(0)
    frames = torch.randn(BATCH, 1, SIZE, SIZE)
    entries = []
    for patch in (2, 1):
        network = UNet2d(**NETWORK, patch=patch)
        peer, name = diffusers_unet(parameters(network))
        where = f"UNet2d with patches of {patch}, {parameters(network) / 1e6:.2f} M parameters"
        entries += [
            _compare(
                f"training step of {BATCH} frames, {where}",
                _training(network, frames),
                _diffusers_training(peer, frames) if peer else None,
                name,
            ),
            _compare(
                f"sampling step of {BATCH} frames, {where}",
                _sampling(network, frames),
                _diffusers_sampling(peer, frames) if peer else None,
                name,
                per=STEPS,
            ),
        ]
    return [*entries, _guidance(frames)]


def parameters(network: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(parameter.numel() for parameter in network.parameters())


def diffusers_unet(wanted: int) -> tuple[nn.Module | None, str]:
    """A plain `UNet2DModel` of about as many parameters, or None without diffusers.

    It has the shape of ours: three resolutions in the proportion 2 : 3 : 4, one block each, no
    attention.
    """
    try:
        from diffusers import UNet2DModel
    except ImportError:
        return None, "diffusers is not installed"

    def build(width: int) -> Any:
        network: Any = UNet2DModel(
            sample_size=SIZE,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(2 * width, 3 * width, 4 * width),
            down_block_types=("DownBlock2D",) * 3,
            up_block_types=("UpBlock2D",) * 3,
            norm_num_groups=2,
            add_attention=False,
        )
        return network

    with torch.device("meta"):
        sizes = {width: parameters(build(width)) for width in range(8, 64, 2)}
    width = min(sizes, key=lambda w: abs(sizes[w] - wanted))
    if abs(sizes[width] / wanted - 1) > 0.1:
        raise RuntimeError(f"No UNet2DModel has {wanted} parameters to within a tenth.")
    name = f"diffusers UNet2DModel, {sizes[width] / 1e6:.2f} M parameters"
    return build(width), name


def _training(network: nn.Module, frames: Tensor) -> Task:
    model = ImageDDPM(network)
    model.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    batch = {"frames": frames[:, None]}

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.training_step(batch, 0)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def _diffusers_training(network: nn.Module, frames: Tensor) -> Task:
    import diffusers

    scheduler: Any = diffusers.DDPMScheduler(1000)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def step() -> None:
        noise = torch.randn_like(frames)
        timesteps = torch.randint(0, 1000, (len(frames),))
        noisy = scheduler.add_noise(frames, noise, timesteps)
        with torch.autocast("cpu", torch.bfloat16):
            predicted = network(noisy, timesteps, return_dict=False)[0]
            loss = nn.functional.mse_loss(predicted.float(), noise)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def _sampling(network: nn.Module, frames: Tensor) -> Task:
    return _sampler(Denoiser(network).eval(), frames, STEPS)


def _sampler(denoiser: Callable[..., Tensor], frames: Tensor, steps: int) -> Task:
    sigmas = edm_sigmas(steps, 0.02, 50.0)
    start = 50.0 * frames

    def sample() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            dpm_solver_pp_2m(denoiser, start, sigmas)

    return sample


def _diffusers_sampling(network: nn.Module, frames: Tensor) -> Task:
    import diffusers

    scheduler: Any = diffusers.DPMSolverMultistepScheduler(1000)

    @torch.no_grad()
    def sample() -> None:
        x = frames
        scheduler.set_timesteps(STEPS)
        with torch.autocast("cpu", torch.bfloat16):
            for timestep in scheduler.timesteps:
                predicted = network(x, timestep, return_dict=False)[0]
                x = scheduler.step(predicted.float(), timestep, x).prev_sample

    return sample


def _guidance(frames: Tensor) -> dict[str, Any]:
    """Guided beside unguided, both as in the turbulence experiment, in milliseconds per frame."""
    image = Denoiser(UNet2d(**NETWORK, patch=2)).eval().requires_grad_(False)
    widths = {"widths": (32, 48, 64), "forecast_widths": NETWORK["widths"]}
    energy = ForecastEnergy(history_length=2, **(NETWORK | widths), patch=2)
    energy = energy.eval().requires_grad_(False)
    history = torch.randn(BATCH, 2, 1, SIZE, SIZE)
    with torch.no_grad():  # once for each frame, whatever the steps
        forecast = energy.forecast(history)
    term = discriminator_guidance(lambda x, sigma: energy(x, sigma, history, forecast=forecast))
    sigma = torch.ones(())
    # A backward pass to the input alone is as many operations as a forward pass.
    forward = _flops(lambda: image(frames, sigma)) + 2 * _flops(
        lambda: energy(frames, sigma, history, forecast=forecast)
    )
    return _compare(
        "frame sampled with a discriminator's guidance, 10 steps",
        _sampler(guide(image, [term]), frames, 10),
        _sampler(image, frames, 10),
        "the same without guidance",
        per=BATCH,
        unit="ms/frame",
        flops=10 * forward,
    )


def _compare(
    name: str,
    ours: Task,
    peer: Task | None,
    peer_name: str,
    per: int = 1,
    unit: str = "ms",
    flops: int | None = None,
) -> dict[str, Any]:
    """Time ours, the peer and a matrix product in turn; divide times by `per`."""
    flops = _flops(ours) if flops is None else flops
    operands = torch.randn(2, MATRIX, MATRIX).bfloat16()
    tasks: dict[str, Task] = {"ours": ours, "matrix": lambda: torch.mm(*operands)}
    if peer is not None:
        tasks["peer"] = peer
    times: dict[str, list[float]] = {task: [] for task in tasks}
    for repeat in range(REPEATS + 1):
        for task, function in tasks.items():
            start = time.perf_counter()
            function()
            if repeat:
                times[task].append((time.perf_counter() - start) * 1e3 / per)
    median = {task: statistics.median(values) for task, values in times.items()}
    limit = flops / (2 * MATRIX**3) * median["matrix"]
    return {
        "name": name,
        "ours": median["ours"],
        "peer": median.get("peer"),
        "peer_name": peer_name,
        "limit": limit,
        "unit": unit,
        "ratio_to_peer": median["ours"] / median["peer"] if peer is not None else None,
        "ratio_to_limit": median["ours"] / limit,
        "spread": (max(times["ours"]) - min(times["ours"])) / median["ours"],
    }


def _flops(task: Task) -> int:
    """Floating-point operations of the convolutions and matrix products of one run."""
    with FlopCounterMode(display=False) as counter:
        task()
    return int(counter.get_total_flops())


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
