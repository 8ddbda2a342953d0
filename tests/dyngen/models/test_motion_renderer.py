"""The renderer: what it begins with, what it learns, its ablations, and its checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_cube import fit, make
from tiny_motion import TinyMotion
from torch import Tensor

from dyngen.callbacks.averaging import ExponentialMovingAverage
from dyngen.metrics.pictures import psnr
from dyngen.models import MotionRenderer
from dyngen.models.checkpoints import load_model
from dyngen.models.motion_renderer import resize_flow
from dyngen.motion.holes import splat_frames
from dyngen.motion.splatting import motion_importance
from dyngen.networks.renderer import FeaturePyramid

Log = Callable[[Any], dict[str, float]]
WIDTHS, BLOCKS = [4, 6, 8], [1]
HEIGHT, WIDTH = 24, 32


class Pairs(TinyMotion):
    """Clips with one frame each: the start frame moved, and a little brighter."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        coarse = torch.rand(8, 3, 6, 8, generator=generator)
        self.image = torch.nn.functional.interpolate(coarse, (HEIGHT, WIDTH), mode="bicubic")
        self.image = self.image.clamp(0, 1)
        shift = torch.randn(8, self.frames, 2, 1, 1, generator=generator)
        self.displacement = 2 * shift.expand(-1, -1, -1, HEIGHT, WIDTH).contiguous()

    def batch(self) -> dict[str, Tensor]:
        image, flow = 2 * self.image - 1, self.displacement[:, 3]
        frame = splat_frames(image, flow[:, None])[:, 0]
        return super().batch() | {"frame": 0.8 * frame + 0.2, "flow": flow}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def data() -> Pairs:
    return Pairs()


def renderer(**options: Any) -> MotionRenderer:
    return MotionRenderer(**{"widths": WIDTHS, "blocks": BLOCKS} | options)


def made(**options: Any) -> MotionRenderer:
    """As the command line makes it."""
    settings = {"widths": WIDTHS, "blocks": BLOCKS, "warmup_steps": 1, "learning_rate": 0.01}
    model = make("MotionRenderer", **settings | options)
    assert isinstance(model, MotionRenderer)
    return model


def awake(model: MotionRenderer) -> MotionRenderer:
    """As after some training: no layer at zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize(
    "options", [{}, {"scales": 1, "importance": "learned"}, {"scales": 2}, {"widths": [4, 4]}]
)
def test_an_untrained_renderer_splats_the_colours(data: Pairs, options: dict[str, Any]) -> None:
    blocks = {"blocks": []} if "widths" in options else {}
    model = renderer(**options, **blocks)
    batch = data.batch()
    motion = motion_importance(batch["displacement"])
    if model.importance is not None:
        motion = torch.zeros_like(motion)  # all are equally important before training
    expected = splat_frames(batch["image"], batch["displacement"], motion)
    rendered = model.render(batch["image"], batch["displacement"])
    torch.testing.assert_close(rendered, expected.clamp(-1, 1))


def test_frames_are_rendered_each_alone(data: Pairs) -> None:
    """Whatever the number of frames that are rendered together, and as in training."""
    model = awake(renderer())
    batch = data.batch()
    image, displacement = batch["image"][:2], batch["displacement"][:2]
    frames = model.render(image, displacement)
    assert frames.shape == (2, data.frames, 3, HEIGHT, WIDTH)
    motion = motion_importance(displacement)
    for t in (0, 9, 14):
        alone = model(image, displacement[:, t], motion).clamp(-1, 1)
        torch.testing.assert_close(frames[:, t], alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(frames[:, 0], splat_frames(image, displacement)[:, 0], atol=1e-2)


def test_any_size_is_rendered() -> None:
    model = awake(renderer())
    frames = model.render(torch.zeros(1, 3, 17, 29), torch.ones(1, 2, 2, 17, 29))
    assert frames.shape == (1, 2, 3, 17, 29)


def test_a_flow_is_resized_in_both_of_its_senses() -> None:
    flow = torch.ones(1, 2, 9, 16)
    small = resize_flow(flow, (3, 8))
    assert small.shape == (1, 2, 3, 8)
    torch.testing.assert_close(small[:, 0], torch.full((1, 3, 8), 0.5))
    torch.testing.assert_close(small[:, 1], torch.full((1, 3, 8), 1 / 3))


@pytest.mark.parametrize("options", [{}, {"scales": 1, "importance": "learned"}])
def test_everything_is_trained(data: Pairs, options: dict[str, Any], logged: Log) -> None:
    model = awake(renderer(**options)).train()
    logged(model)
    model.training_step(data.batch(), 0).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_the_loss_is_that_of_colours_and_waves(data: Pairs, logged: Log) -> None:
    model = renderer(perceptual_weight=0.5)
    values = logged(model)
    batch = data.batch()
    loss = model.training_step(batch, 0).item()
    assert loss == pytest.approx(
        values["train/l1"] + 0.5 * values["train/perceptual_waves-j4-l4"], rel=1e-5
    )
    frame = splat_frames(batch["image"], batch["flow"][:, None])[:, 0]
    assert values["train/l1"] == pytest.approx((frame - batch["frame"]).abs().mean().item(), 1e-4)


def test_training_learns_what_splatting_cannot_know(data: Pairs, logged: Log) -> None:
    model = made()
    fit(model, data, max_steps=30)
    values = logged(model.eval())
    with torch.no_grad():
        model.validation_step(data.batch(), 0)
    assert values["psnr"] > values["direct_splatting/psnr"] + 2
    assert values["ssim"] > values["repeat_first_frame/ssim"]
    assert values["perceptual_waves-j4-l4"] < values["repeat_first_frame/perceptual_waves-j4-l4"]
    truth, still = data.batch()["frame"], data.batch()["image"]
    assert values["repeat_first_frame/psnr"] == pytest.approx(psnr(still, truth).mean().item())


def test_a_checkpoint_renders_by_itself(data: Pairs, tmp_path: Path) -> None:
    weights = tmp_path / "resnet.pt"
    torch.save(FeaturePyramid(WIDTHS, BLOCKS).residual.state_dict(), weights)
    model = made(encoder_weights=str(weights))
    trainer = fit(model, data, callbacks=[ExponentialMovingAverage(0.5)])
    trainer.save_checkpoint(tmp_path / "renderer.ckpt")
    weights.unlink()  # only training needs it
    loaded = load_model(tmp_path / "renderer.ckpt")
    assert isinstance(loaded, MotionRenderer)
    assert loaded.cube == data.description()
    batch = data.batch()
    rendered = loaded.render(batch["image"], batch["displacement"])
    averaged = trainer.callbacks[0]._average_model.module.eval()  # type: ignore[attr-defined]
    torch.testing.assert_close(
        rendered, averaged.render(batch["image"], batch["displacement"]), atol=1e-5, rtol=1e-5
    )


def test_a_run_that_is_resumed_ends_the_same(data: Pairs, tmp_path: Path) -> None:
    whole = made()
    fit(whole, data, max_steps=4)
    half = ModelCheckpoint(tmp_path, "half", every_n_train_steps=2, save_top_k=-1)
    fit(made(), data, max_steps=4, callbacks=[half], enable_checkpointing=True)
    second = made()
    fit(second, data, max_steps=4, ckpt_path=tmp_path / "half.ckpt")
    for name, value in second.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name


def test_training_begins_with_the_weights_given(data: Pairs, tmp_path: Path) -> None:
    weights = FeaturePyramid(WIDTHS, BLOCKS).residual.state_dict()
    torch.save(weights, tmp_path / "resnet.pt")
    model = renderer(encoder_weights=str(tmp_path / "resnet.pt"))
    model.setup("fit")
    for name, value in model.pyramid.residual.state_dict().items():
        assert torch.equal(value, weights[name]), name


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.pt", None, "There are no weights .*none.pt; give the path"),
        ("text.pt", "weights", "text.pt cannot be read as weights"),
        ("list.pt", [1, 2], "list.pt holds no state_dict"),
        ("other.pt", {"conv1.weight": torch.zeros(2)}, "other.pt has no 'bn1.weight'"),
    ],
)
def test_weights_that_are_none_are_refused(
    name: str, content: Any, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if isinstance(content, str):
        path.write_text(content)
    elif content is not None:
        torch.save(content, path)
    model = renderer(encoder_weights=str(path), perceptual_weights=str(path))
    with pytest.raises(ValueError, match=message):
        model.setup("fit")
    if name != "other.pt":
        with pytest.raises(ValueError, match=message):
            model.distance()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": 4}, "scales is 4; there are levels for 1 to 3"),
        ({"scales": 0}, "scales is 0"),
        ({"importance": "depth"}, "importance is 'depth'"),
        ({"scales": 1, "encoder_weights": "x"}, "there is no ResNet"),
        ({"blocks": [1, 1]}, "give 1 to 6 widths"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        renderer(**options)
