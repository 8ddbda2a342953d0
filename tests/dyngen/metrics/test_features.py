"""Feature extractors: scattering by what it must and must not see, networks by files of our own."""

import functools
import hashlib
import http.server
import math
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from dyngen.diffusion.denoiser import Denoiser
from dyngen.metrics.features import (
    FLOOR,
    EncoderFeatures,
    FeatureExtractor,
    ScatteringFrames,
    ScatteringWindows,
    TorchScriptFeatures,
    extractor_from,
    feature_dimension,
    fetch,
    for_channels,
    time_asymmetry,
)
from dyngen.metrics.frechet import FrechetDistance
from dyngen.networks.unet import UNet2d
from dyngen.simulate.autoregressive import AutoregressiveFields, power_law_spectrum


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def smooth(windows: int, frames: int, size: int = 16, seed: int = 0) -> torch.Tensor:
    """Windows of an AR(1) process of smooth fields, (B, T, 1, H, W)."""
    world = AutoregressiveFields(power_law_spectrum(size, size, slope=4.0), 0.9)
    return world.simulate(windows, frames, generator=torch.Generator().manual_seed(seed))


# Scattering


@pytest.mark.parametrize("channels", [1, 2, 11])
def test_channels_are_scattered_one_by_one_and_joined(channels: int) -> None:
    frames = draw(3, channels, 16, 20)
    extractor = ScatteringFrames(channels, scales=2, angles=3)
    features = extractor(frames)
    assert features.shape == (3, extractor.dimension) == (3, channels * (1 + 6 + 9))
    alone = ScatteringFrames(1, scales=2, angles=3)
    joined = torch.cat([alone(frames[:, c : c + 1]) for c in range(channels)], dim=1)
    torch.testing.assert_close(features, joined)
    windows = ScatteringWindows(channels, length=8, scales=2, angles=3)
    of_windows = windows(draw(2, 8, channels, 16, 20))
    assert of_windows.shape == (2, windows.dimension)
    assert isinstance(extractor, FeatureExtractor)


def test_mirrored_coefficients_are_kymatios() -> None:
    from kymatio.scattering2d.frontend import torch_frontend as scattering2d

    fields = smooth(3, 1, 32)[:, 0, 0].contiguous()
    theirs = (
        scattering2d.ScatteringTorch2D(J=2, shape=(32, 32), L=4)(fields).mean((-2, -1)).double()
    )
    ours = ScatteringFrames(1, scales=2, angles=4, boundary=("reflect", "reflect"))(fields[:, None])
    torch.testing.assert_close(ours[:, 0], fields.mean((1, 2)))
    first, second = theirs[:, 1:9] + FLOOR, theirs[:, 9:] + FLOOR
    torch.testing.assert_close(ours[:, 1:9].double(), first.log(), rtol=1e-4, atol=1e-4)
    of_parent = second / first[:, :4].repeat_interleave(4, 1)
    torch.testing.assert_close(ours[:, 9:].double(), of_parent.log(), rtol=1e-3, atol=1e-3)


def test_a_periodic_field_is_that_of_its_tiles_and_may_be_shifted() -> None:
    frames = smooth(8, 1, 32)[:, 0]
    periodic, mirrored = ScatteringFrames(), ScatteringFrames(boundary=("reflect", "reflect"))
    assert periodic.name == "scattering-j3-l4"
    assert mirrored.name == "scattering-j3-l4-mirror-yx"

    def change(extractor: ScatteringFrames, other: torch.Tensor) -> float:
        return float((extractor(other) - extractor(frames)).abs().mean())

    for same in (frames.roll((5, 11), (-2, -1)), frames.repeat(1, 1, 2, 2)):
        assert change(periodic, same) < 0.5 * change(mirrored, same)
        assert change(periodic, same) < 0.3 * change(periodic, smooth(8, 1, 32, seed=1)[:, 0])


def test_a_change_of_amplitude_moves_first_order_by_its_logarithm() -> None:
    frames = smooth(2, 1)[:, 0]
    extractor = ScatteringFrames(scales=2)
    one, two = extractor(frames), extractor(2 * frames)
    torch.testing.assert_close(
        (two - one)[:, 1:9], torch.full((2, 8), math.log(2)), rtol=0.02, atol=0
    )
    torch.testing.assert_close(two[:, 9:], one[:, 9:], rtol=0, atol=0.05)


def test_results_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = smooth(5, 16)
    extractor = ScatteringWindows()
    whole = extractor(windows)
    monkeypatch.setattr("dyngen.metrics.features.POINTS_AT_ONCE", 16 * 16 * 16)
    torch.testing.assert_close(extractor(windows), whole)
    torch.testing.assert_close(torch.cat([extractor(w[None]) for w in windows]), whole)


def test_time_asymmetry_is_odd_and_vanishes_for_reversible_processes() -> None:
    reversible = smooth(300, 16, 8)[:, :, 0]
    found = time_asymmetry(reversible, [1, 4])
    torch.testing.assert_close(time_asymmetry(reversible.flip(1), [1, 4]), -found)
    error = found.std(0) / math.sqrt(len(found))
    assert bool((found.mean(0).abs() < 4 * error).all())
    # Sudden onset and slow decay: anomalies are larger after large changes.
    burst = torch.zeros(1, 16, 1)
    burst[0, 4:, 0] = 0.7 ** torch.arange(12)
    assert float(time_asymmetry(burst, [1])) > 0.2
    # By hand, with mean 1: sizes 1, 1, 1, 3; changes 0, 0, 4 -> (3 - 1) 4 / ((3 + 1) 4).
    spike = torch.tensor([0.0, 0.0, 0.0, 4.0]).reshape(1, 4, 1)
    torch.testing.assert_close(time_asymmetry(spike, [1]), torch.tensor([[0.5]]))


def test_windows_are_told_from_shuffled_frozen_and_reversed_ones() -> None:
    """In standard deviations; frames alone cannot tell any of these."""
    windows = smooth(24, 16)
    # A ramp in time that then falls at once: not reversible.
    saw = windows.cumsum(1) * torch.linspace(0.2, 1, 16).reshape(1, 16, 1, 1, 1)
    extractor = ScatteringWindows(scales=2)

    def moved(changed: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
        before, after = extractor(original), extractor(changed)
        return ((after - before).mean(0) / before.std(0).clamp_min(1e-3)).abs()

    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    frozen = windows.clone()
    frozen[:, 8:] = windows[:, 7:8]
    assert float(moved(windows[:, order], windows).max()) > 3
    assert float(moved(frozen, windows).max()) > 3
    assert float(moved(saw.flip(1), saw).max()) > 3
    frames = ScatteringFrames(scales=2)
    torch.testing.assert_close(
        frames(windows[:, order].flatten(0, 1)).mean(0), frames(windows.flatten(0, 1)).mean(0)
    )


def test_what_scattering_cannot_take_is_refused() -> None:
    with pytest.raises(ValueError, match=r"8 x 32 cells .* 3 scales .* use at most 2"):
        ScatteringFrames()(draw(1, 1, 8, 32))
    with pytest.raises(ValueError, match=r"takes \(B, C, H, W\) with 1 channels"):
        ScatteringFrames()(draw(1, 2, 32, 32))
    with pytest.raises(ValueError, match="windows of 16 frames, not of 12"):
        ScatteringWindows()(draw(1, 12, 1, 32, 32))
    with pytest.raises(ValueError, match="at least 8 frames"):
        ScatteringWindows(length=4)


# Networks


class Moving(nn.Module):
    """A stand-in for I3D and Inception: mean and mean square by channel, over the rest."""

    def forward(self, x: torch.Tensor, return_features: bool = True) -> torch.Tensor:
        flat = x.flatten(2)
        if not return_features:
            return flat.sum((1, 2))[:, None]
        return torch.cat([flat.mean(2), flat.square().mean(2)], dim=1)


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("networks") / "moving.pt"
    torch.jit.script(Moving()).save(str(path))
    return path


@pytest.fixture
def server(script: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """The folder of the network over loopback HTTP, and the paths asked for."""
    asked: list[str] = []

    class Files(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            asked.append(self.path)

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = functools.partial(Files, directory=str(script.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}/moving.pt", asked
        running.shutdown()
        thread.join()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_network_from_a_url_is_checked_kept_and_named(
    server: tuple[str, list[str]], script: Path, tmp_path: Path
) -> None:
    url, asked = server
    extractor = TorchScriptFeatures(url, digest(script).upper(), cache=tmp_path / "kept")
    assert extractor.name == f"moving-{digest(script)[:8]}"
    frames = draw(4, 3, 6, 5)
    expected = torch.cat([frames.mean((2, 3)), frames.square().mean((2, 3))], dim=1)
    torch.testing.assert_close(extractor(frames), expected)
    again = TorchScriptFeatures(url, digest(script), cache=tmp_path / "kept")
    torch.testing.assert_close(again(frames), expected)
    assert asked == ["/moving.pt"]  # the second came from the folder
    metric = FrechetDistance(again, feature_dimension(again, (3, 6, 5)), kind="FID")
    assert metric.name == f"FID_moving-{digest(script)[:8]}"
    metric.update(frames, real=True)
    metric.update(frames + 1, real=False)
    assert float(metric.result().mean_part) > 3


def test_what_is_not_what_it_should_be_is_not_loaded(
    server: tuple[str, list[str]], script: Path, tmp_path: Path
) -> None:
    url, _ = server
    with pytest.raises(ValueError, match=f"has the checksum {digest(script)}, not 0000"):
        fetch(url, "0" * 64, tmp_path)
    assert not list(tmp_path.iterdir())  # nothing half-done is left
    with pytest.raises(ValueError, match="give the sha256"):
        TorchScriptFeatures(url)
    with pytest.raises(ValueError, match="is not loaded"):
        TorchScriptFeatures(script, "0" * 64)
    with pytest.raises(FileNotFoundError, match=r"no feature network .*missing\.pt"):
        TorchScriptFeatures(script.with_name("missing.pt"))
    # A file in the folder of downloads that has been changed is fetched again.
    kept = fetch(url, digest(script), tmp_path)
    kept.write_bytes(b"something else")
    assert digest(fetch(url, digest(script), tmp_path)) == digest(script)


@pytest.mark.parametrize("channels", [1, 3, 11])
def test_fields_of_any_number_of_channels_go_through_a_network_of_three(
    script: Path, channels: int
) -> None:
    frames = draw(2, channels, 4, 4)
    found = TorchScriptFeatures(script)(frames)
    mean, square = frames.mean((2, 3)), frames.square().mean((2, 3))
    if channels == 3:
        expected = torch.cat([mean, square], dim=1)
    else:
        columns = [
            torch.cat([m.expand(-1, 3), s.expand(-1, 3)], 1)
            for m, s in zip(mean.split(1, 1), square.split(1, 1), strict=True)
        ]
        expected = torch.cat(columns, dim=1)
    torch.testing.assert_close(found, expected)
    assert len(for_channels(frames, 3, 1)) == (1 if channels in (1, 3) else channels)


def test_windows_reach_a_network_with_channels_before_time(script: Path) -> None:
    windows = draw(2, 5, 3, 4, 4)
    extractor = TorchScriptFeatures(script)
    expected = torch.cat([windows.mean((1, 3, 4)), windows.square().mean((1, 3, 4))], dim=1)
    torch.testing.assert_close(extractor(windows), expected)
    with pytest.raises(ValueError, match=r"frames .* or windows"):
        extractor(draw(3, 4, 4))


def test_values_are_scaled_clipped_and_resized_as_the_network_wants(script: Path) -> None:
    extractor = TorchScriptFeatures(script, value_range=(0, 10), network_range=(-1, 1), size=(8, 6))
    frames = torch.tensor([-5.0, 0.0, 5.0, 30.0]).reshape(4, 1, 1, 1).expand(4, 3, 4, 4)
    expected = torch.tensor([-1.0, -1.0, 0.0, 1.0])[:, None].expand(4, 3)
    torch.testing.assert_close(extractor(frames)[:, :3], expected)
    raw = TorchScriptFeatures(script, arguments={"return_features": False}, size=(8, 6))
    torch.testing.assert_close(raw(torch.ones(1, 3, 4, 4)), torch.full((1, 1), 3.0 * 48))


def test_an_encoder_gives_what_its_layer_gives() -> None:
    torch.manual_seed(0)
    denoiser = Denoiser(UNet2d(2, widths=(8, 12), blocks=1, embedding=16))
    for parameter in denoiser.parameters():  # no layer silent, as some start at zero
        nn.init.normal_(parameter, std=0.2)
    extractor = EncoderFeatures(denoiser, sigma=0.5)
    frames = draw(3, 2, 8, 8)
    features = extractor(frames)
    assert features.shape == (3, 12)
    assert not features.requires_grad
    seen: list[torch.Tensor] = []
    denoiser.get_submodule("network.middle.1").register_forward_hook(
        lambda _m, _i, o: seen.append(o)
    )
    denoiser(frames, torch.tensor(0.5))
    torch.testing.assert_close(features, seen[0].mean((2, 3)))
    other = Denoiser(UNet2d(2, widths=(8, 12), blocks=1, embedding=16))
    assert extractor.name.startswith("encoder-network.middle.1-sigma0.5-")
    assert EncoderFeatures(denoiser, sigma=0.5).name == extractor.name
    assert EncoderFeatures(other, sigma=0.5).name != extractor.name
    with pytest.raises(ValueError, match="no layer 'middle'; it has network, "):
        EncoderFeatures(denoiser, layer="middle")


def test_extractors_come_by_class_path() -> None:
    found = extractor_from("dyngen.metrics.features.ScatteringFrames", {"scales": 2})
    assert found.name == "scattering-j2-l4"
    for path in ("dyngen.metrics.features.Nothing", "no.such.Thing", "Thing"):
        with pytest.raises(ValueError, match=f"there is no feature extractor '{path}'"):
            extractor_from(path)
    with pytest.raises(ValueError, match="no feature extractor: it must be callable and have a"):
        extractor_from("torch.nn.Identity")
