"""The loop: against one written out by hand, whatever the batches and blocks."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_world
from torch import Tensor

from dyngen.rollout import progress
from dyngen.rollout.ensemble import rollout
from dyngen.rollout.progress import FrameProgress
from dyngen.rollout.randomness import FrameNoise
from dyngen.rollout.store import RolloutError, open_rollout


def by_hand(initial: int, member: int, steps: int, seed: int, coefficient: float = 0.9) -> Tensor:
    """One member of the toy world (steps, C, H, W), with no batch, block or engine."""
    frame = toy_world.histories()[initial, -1]
    frames = []
    for step in range(steps):
        forcing = FrameNoise(seed, [(initial, member)], step)(frame[None])[0]
        frame = coefficient * frame + (1 - coefficient**2) ** 0.5 * forcing
        frames.append(frame)
    return torch.stack(frames)


def run(sampler: Any = None, **changes: Any) -> Any:
    arguments: dict[str, Any] = {"members": 4, "steps": 6, "seed": 7} | changes
    return rollout(sampler or toy_world.LinearSampler(), toy_world.histories(), **arguments)


@pytest.mark.parametrize("batch_size", [1, 3, 5, 100])
def test_members_are_those_computed_by_hand(batch_size: int) -> None:
    ensemble = run(batch_size=batch_size)
    assert ensemble.frames.shape == (3, 4, 6, 2, 4, 5)
    for initial, member in [(0, 0), (1, 3), (2, 1)]:
        expected = by_hand(initial, member, 6, seed=7)
        torch.testing.assert_close(ensemble.frames[initial, member], expected, rtol=0, atol=0)
    expected = ensemble.frames.flatten(3).std(3)
    torch.testing.assert_close(ensemble.diagnostics["spread"], expected)


def test_members_differ_and_more_of_them_change_nothing() -> None:
    few, many = run(members=2).frames, run(members=5).frames
    torch.testing.assert_close(many[:, :2], few, rtol=0, atol=0)
    assert not torch.equal(many[:, 0], many[:, 1])


def test_every_other_frame_is_kept() -> None:
    torch.testing.assert_close(run(every=3).frames, run().frames[:, :, 2::3], rtol=0, atol=0)


def test_a_sampler_may_give_several_frames_at_a_call() -> None:
    sampler = toy_world.LinearSampler(block_length=4)
    ensemble = run(sampler, steps=10, batch_size=100)
    assert sampler.calls == 3
    assert ensemble.frames.shape[2] == 10
    noise = FrameNoise(7, [(1, 2)], 4)  # the second call begins at step 4
    before = ensemble.frames[1, 2, 3]
    expected = 0.9 * before + (1 - 0.9**2) ** 0.5 * noise(before[None])[0]
    torch.testing.assert_close(ensemble.frames[1, 2, 4], expected)


def test_the_history_holds_the_last_frames_in_order() -> None:
    seen: list[Tensor] = []

    class Watched(toy_world.LinearSampler):
        def __call__(self, history: Tensor, *args: Any, **kwargs: Any) -> Any:
            seen.append(history)
            return super().__call__(history, *args, **kwargs)

    ensemble = run(Watched(), members=1, batch_size=1, steps=3)
    first = [ensemble.frames[0, 0, step] for step in range(3)]
    torch.testing.assert_close(seen[0][0], toy_world.histories()[0])
    torch.testing.assert_close(seen[1][0], torch.stack([toy_world.histories()[0, 1], first[0]]))
    torch.testing.assert_close(seen[2][0], torch.stack(first[:2]))


def test_conditioning_follows_initial_state_and_step() -> None:
    def season(initials: list[int], step: int) -> dict[str, Tensor]:
        return {"season": torch.tensor([100.0 * initial + step for initial in initials])}

    sampler = toy_world.LinearSampler(0.0)  # no memory: frames are noise plus season
    moved = run(sampler, conditioning=season).frames - run(sampler).frames
    expected = 100.0 * torch.arange(3)[:, None, None] + torch.arange(6)
    torch.testing.assert_close(moved.mean((-3, -2, -1)), expected.expand(3, 4, 6))


def test_physical_units_are_of_the_output_alone() -> None:
    physical = run(denormalise=toy_world.to_physical).frames
    torch.testing.assert_close(physical, toy_world.to_physical(run().frames))


def test_a_frame_that_is_not_finite_stops_it_by_name(tmp_path: Path) -> None:
    with pytest.raises(RolloutError, match="Member 3 of initial state 0 is not finite at step 3"):
        run(toy_world.LinearSampler(spoilt=2), batch_size=4)
    path = tmp_path / "spoilt.zarr"
    with pytest.raises(RolloutError, match="everything written before is kept"):
        toy_world.write(path, initials=1, sampler=toy_world.LinearSampler(spoilt=12))
    assert open_rollout(path).sizes["time"] == 4


def test_histories_must_fit_the_sampler() -> None:
    with pytest.raises(ValueError, match=r"\(3, 2, 2, 4, 5\); this sampler takes \(N, 3, C, H, W"):
        run(toy_world.LinearSampler(history_length=3))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"shape": (3, 5), "coords": {}}, r"grid \(4, 5\) and the field to be written has \(3, 5"),
        ({"variables": {"t2m": {}}}, "channels 2 and the field to be written has 1"),
        ({"initial_times": toy_world.field(2).initial_times}, "initial states 3 and the field"),
    ],
)
def test_a_field_of_another_cube_is_refused(
    tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    field = dataclasses.replace(toy_world.field(), **change)
    with pytest.raises(ValueError, match=sentence):
        toy_world.write(tmp_path / "other.zarr", field=field)
    assert not (tmp_path / "other.zarr").exists()


def test_means_of_the_diagnostics_are_told(tmp_path: Path) -> None:
    written = toy_world.write(tmp_path / "rollout.zarr")
    assert written.frames == 3 * 5 * 10
    assert written.frames_per_second > 0
    stored = open_rollout(tmp_path / "rollout.zarr").spread
    assert written.diagnostics["spread"] == pytest.approx(float(stored.mean()), rel=1e-5)


def test_progress_is_told_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with caplog.at_level(logging.INFO):
        run(progress=True, batch_size=12)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 6
    assert lines[2].startswith("rollout: 36 of 72 frames, ")
    assert lines[2].endswith(" frames/s")


def test_a_terminal_has_a_bar_with_frames_per_second(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes the stream for a terminal
    monkeypatch.setenv("COLUMNS", "100")
    with FrameProgress(20, done=10, shown=True) as bar:
        bar.advance(5)
    shown = capsys.readouterr().err
    assert "15/20 frames" in shown
    assert "frames/s" in shown


def test_nothing_is_shown_unasked(capsys: pytest.CaptureFixture[str]) -> None:
    run()
    captured = capsys.readouterr()
    assert captured.err == captured.out == ""
