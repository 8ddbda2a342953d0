"""The results of motion: every figure from models and clips that are known."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tiny_cube import fit, make
from tiny_motion import AUTOENCODER, TERMS, TinyMotion, spectral_unet

from dyngen.garden import ABLATION, garden, write_motion_page
from dyngen.garden_results import (
    energy_kept,
    held_out,
    in_short,
    motion_results,
    sample_all,
    write_results,
)
from dyngen.models.checkpoints import load_model
from dyngen.motion.spectral_volume import displacement_frames, spectral_volume
from dyngen.report.motion import motion_scores

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[3]


class MaskedMotion(TinyMotion):
    """Clips whose brighter half can move."""

    def batch(self) -> dict[str, torch.Tensor]:
        return super().batch() | {"mask": (self.image[:, :1] > 0.5).float()}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("motion")
    return latent_diffusions(folder, "independent", "volume")


def latent_diffusions(folder: Path, *kinds: str, **options: Any) -> dict[str, Path]:
    """Checkpoints of hardly trained latent diffusions, and options of their autoencoder."""
    names = ("autoencoder", *kinds)
    paths, data = {name: folder / f"{name}.ckpt" for name in names}, TinyMotion()
    settings = {"network": AUTOENCODER, "terms": TERMS, "learning_rate": 0.01} | options
    model = make("MotionAutoencoder", **settings)
    fit(model, data, max_steps=20, limit_val_batches=0).save_checkpoint(paths["autoencoder"])
    for kind in kinds:
        model = make(
            "SpectralLDM", network=spectral_unet(kind), autoencoder=str(paths["autoencoder"])
        )
        fit(model, data, limit_val_batches=0).save_checkpoint(paths[kind])
    return paths


def test_energy_is_kept_in_what_is_added_up() -> None:
    data = TinyMotion(terms=4)
    data.displacement[0] *= 5  # clips count by their motion
    kept = energy_kept([{k: v[a:b] for k, v in data.batch().items()} for a, b in ((0, 3), (3, 8))])
    assert kept == pytest.approx({"4": 1.0, "8": 1.0})  # 15 frames tell 8 terms, not 16
    volume = torch.randn(2, 8, 4, 3, 3)
    volume[1] *= 10
    moving = displacement_frames(volume, 15)
    first = displacement_frames(spectral_volume(moving, 4), 15)
    kept = energy_kept([{"displacement": moving[:1]}, {"displacement": moving[1:]}])
    lost = (moving - first).square().sum() / moving.square().sum()
    assert kept["4"] == pytest.approx(1 - lost.item(), rel=1e-5)
    assert kept["4"] < 0.9


def test_all_that_is_asked_for_is_measured(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    out, data = tmp_path / "results" / "motion.json", MaskedMotion()
    out.parent.mkdir()
    out.write_text(json.dumps({"end_point_error_median": 0.2, "energy_kept": {"2": 0.5}}))
    models = {name: checkpoints[name] for name in ("independent", "volume")}
    options: dict[str, Any] = {"clips": 6, "steps": 2, "seed": 3}
    options["samplings"] = {"three steps of DDIM": ("volume", {"sampler": "ddim", "steps": 3})}
    results = motion_results(data, models, out, command="make results", **options)
    assert json.loads(out.read_text()) == results
    assert results["end_point_error_median"] == 0.2
    assert list(results["energy_kept"]) == ["4", "8"]
    assert (results["clips"], results["command"]) == (6, "make results")
    assert results["machine"]["torch"] == torch.__version__
    assert list(results["reconstruction_error"]) == ["autoencoder", "independent", "volume"]

    model: Any = load_model(checkpoints["volume"])
    batches = held_out(data, "test", 6, CPU)
    assert [len(batch["image"]) for batch in batches] == [4, 2]
    errors = (4 * model.reconstruction_errors(batches[0], 0)
              + 2 * model.reconstruction_errors(batches[1], 1)) / 6  # fmt: skip
    by_noise = results["reconstruction_error_by_noise"]["volume"]
    assert list(by_noise.values()) == pytest.approx(errors.tolist(), rel=1e-4)
    assert results["reconstruction_error"]["volume"] == pytest.approx(errors.mean().item())
    volume = model.volume(data.displacement[:6])
    decoded = model.latents.normalise(model.latents.decode(model.latents.encode(volume)))
    limit = (decoded - model.latents.normalise(volume)).abs().mean().item()
    assert results["reconstruction_error"]["autoencoder"] == pytest.approx(limit, rel=1e-4)
    first: Any = load_model(checkpoints["independent"])
    decoded = first.latents.decode(first.latents.encode(volume))
    alone = in_short(motion_scores(decoded, volume, data.image[:6, 0] > 0.5))
    assert results["autoencoder"] == pytest.approx(alone, rel=1e-3)

    sampled = model.sample(data.batch()["image"][:6], 3, steps=2, guidance_scale=0.0)
    expected = motion_scores(sampled, volume, data.image[:6, 0] > 0.5)
    row = results["ablation"]["volume"]
    for name, value in in_short(expected).items():
        assert row[name] == pytest.approx(value, rel=1e-3), name
    other = results["samplings"]["three steps of DDIM"]
    settings = {"sampler": "ddim", "steps": 3, "guidance_scale": 0.0}
    expected = motion_scores(
        model.sample(data.batch()["image"][:6], 3, **settings), volume, data.image[:6, 0] > 0.5
    )
    for name, value in {**settings, "model": "volume", **in_short(expected)}.items():
        assert other[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-3))
    assert row["terms"] == TERMS
    assert row["seconds_per_sample"] > 0
    assert results["models"]["volume"]["frequencies"] == pytest.approx([0, 2, 4])
    floor = in_short(motion_scores(volume[:3], volume[3:]))
    assert results["floor"]["spatial_correlation_error"] == pytest.approx(
        floor["spatial_correlation_error"]
    )
    assert results["floor"]["area_under_curve"] is None


def test_errors_are_in_the_units_of_the_first_model(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    scaled = latent_diffusions(tmp_path, "independent", normalisation="image_size")
    models = {"independent": checkpoints["independent"], "image_size": scaled["independent"]}
    found = motion_results(MaskedMotion(), models, tmp_path / "motion.json", clips=8, steps=2)
    one, other = (cast(Any, load_model(path)) for path in models.values())
    pixels = spectral_volume(MaskedMotion().displacement, TERMS)
    decoded = other.latents.decode(other.latents.encode(pixels))

    def adaptive(volume: torch.Tensor) -> torch.Tensor:
        scales = one.latents.normalisation.scales[:, None, None, None]
        return volume.sign() * (volume.abs() / scales).sqrt()

    error = found["ablation"]["image_size"]["autoencoder_error"]
    expected = (adaptive(decoded) - adaptive(pixels)).abs().mean().item()
    assert error == pytest.approx(expected, rel=1e-4)


def test_the_page_holds_the_numbers(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    models = {"coordinated": checkpoints["volume"], "independent": checkpoints["independent"]}
    samplings = {"DDIM": ("coordinated", {"sampler": "ddim"})}
    found = motion_results(
        MaskedMotion(), models, tmp_path / "motion.json", clips=4, steps=2, samplings=samplings
    )
    found |= {"end_point_error_median": 0.123, "seconds": {"a": 120.0}}
    write_motion_page(tmp_path, found)
    page = (tmp_path / "motion.md").read_text()
    error = found["reconstruction_error"]["coordinated"]
    assert f"| coordinated | {TERMS} | {error:.3g} |" in page
    assert "All are sampled with dpm_solver_pp_2m, 2 steps and w 0. In other ways:" in page
    distance = found["samplings"]["DDIM"]["power_spectrum_distance_db"]
    assert f"| coordinated, DDIM | ddim, 2 steps, w 0 | {distance:.3g} |" in page
    assert "2 minutes of training" in page
    assert "0.123 px" in page
    for name in ("motion_spectrum", "motion_amplitude", "motion_correlation"):
        assert f"({name}.svg)" in page
        assert (tmp_path / f"{name}.svg").stat().st_size > 1000


def test_every_model_of_the_garden_is_trained_once_in_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Sequence[str]] = []
    monkeypatch.setattr("dyngen.stages.run", ran.append)
    with pytest.raises(ValueError, match=r"motion\.zarr"):  # there are no clips to measure on
        garden(ROOT / "experiments" / "garden", tmp_path / "out", tmp_path / "results", together=1)
    assert [words[0] for words in ran] == ["simulate"] + ["fit"] * (4 + len(ABLATION))
    versions = [w[w.index("--trainer.logger.init_args.version") + 1] for w in ran[4:]]
    assert versions == ["autoencoder_image_size", *ABLATION]
    scaled = tmp_path / "out" / versions[0] / "checkpoints" / "last.ckpt"
    assert str(scaled) in ran[4 + versions.index("image_size")]
    with pytest.raises(ValueError, match=r"cube\.yaml does not exist"):
        garden(tmp_path, tmp_path / "out", tmp_path / "results")


def test_samples_do_not_depend_on_batches(checkpoints: dict[str, Path]) -> None:
    model: Any = load_model(checkpoints["independent"])
    batch = TinyMotion().batch()
    apart = [{k: v[a:b] for k, v in batch.items()} for a, b in ((0, 3), (3, 8))]
    together, real, mask = sample_all(model, [batch], 5, steps=2)
    assert mask is None
    torch.testing.assert_close(real, spectral_volume(batch["displacement"], TERMS))
    torch.testing.assert_close(sample_all(model, apart, 5, steps=2)[0], together)


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    write_results(out, {"a": [math.nan, 1.0], "b": {"c": math.inf}})
    assert write_results(out, {"d": 2}) == {"a": [None, 1.0], "b": {"c": None}, "d": 2}


def test_mistakes_get_a_sentence(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    with pytest.raises(ValueError, match="holds a MotionAutoencoder, which samples no motion"):
        motion_results(TinyMotion(), {"a": checkpoints["autoencoder"]}, out)
    with pytest.raises(ValueError, match=r"The test split has no clips, or none are asked for"):
        motion_results(TinyMotion(), {"a": checkpoints["volume"]}, out, clips=0)
    assert not out.exists()
