"""Random numbers depend on (seed, initial, member, step) and on nothing else."""

import math

import pytest
import torch

from dyngen.rollout import randomness
from dyngen.rollout.randomness import FrameNoise

ROWS = [(0, 0), (0, 1), (2, 0), (2, 7)]


def draw(rows: list[tuple[int, int]], seed: int = 1, step: int = 5, width: int = 6) -> torch.Tensor:
    return FrameNoise(seed, rows, step)(torch.zeros(len(rows), 1, 3, width))


def test_a_row_draws_the_same_in_any_batch() -> None:
    together = draw(ROWS)
    for row in range(len(ROWS)):
        torch.testing.assert_close(draw([ROWS[row]])[0], together[row], rtol=0, atol=0)
    torch.testing.assert_close(draw(ROWS[::-1]).flip(0), together, rtol=0, atol=0)


def test_threads_draw_the_same_as_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = draw(ROWS, width=1000)
    monkeypatch.setattr(randomness, "LARGE", 1)
    torch.testing.assert_close(draw(ROWS, width=1000), alone, rtol=0, atol=0)


def test_each_part_of_the_key_counts() -> None:
    variants = [
        draw([(0, 0)]),
        draw([(1, 0)]),
        draw([(0, 1)]),
        draw([(0, 0)], seed=2),
        draw([(0, 0)], step=6),
        draw([(0, 0)], seed=1 + 2**32),
        draw([(0, 0)], step=5 + 2**32),
    ]
    values = torch.stack(variants).flatten(1)
    assert len(torch.unique(values[:, 0])) == len(variants)


def test_calls_continue_the_sequence_and_uniforms_do_not_disturb_it() -> None:
    noise, other = FrameNoise(0, ROWS, 0), FrameNoise(0, ROWS, 0)
    x = torch.zeros(4, 2, 5)
    first, second = noise(x), noise(x)
    assert not torch.equal(first, second)
    torch.testing.assert_close(other(x), first, rtol=0, atol=0)
    other.uniform(8)
    torch.testing.assert_close(other(x), second, rtol=0, atol=0)


def test_particles_draw_from_their_members_generator() -> None:
    particles = FrameNoise(3, ROWS, 2)(torch.zeros(8, 5))  # 2 each
    alone = FrameNoise(3, [ROWS[2]], 2)(torch.zeros(2, 5))
    torch.testing.assert_close(particles[4:6], alone, rtol=0, atol=0)
    uniform = FrameNoise(3, ROWS, 2).uniform(8)
    torch.testing.assert_close(uniform[4:6], FrameNoise(3, [ROWS[2]], 2).uniform(2), rtol=0, atol=0)


def test_numbers_are_normal_and_uniform() -> None:
    rows = [(i, m) for i in range(40) for m in range(10)]
    noise = FrameNoise(9, rows, 0)
    normal = noise(torch.zeros(400, 250)).double()
    error = 1 / math.sqrt(normal.numel())
    assert abs(normal.mean()) < 4 * error
    assert abs(normal.square().mean() - 1) < 4 * math.sqrt(2) * error
    assert abs(normal.pow(4).mean() - 3) < 4 * math.sqrt(96) * error
    between_rows = (normal[:-1] * normal[1:]).mean()
    assert abs(between_rows) < 4 * error
    uniform = noise.uniform(40_000).double()
    assert 0 <= uniform.min() < uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 4 * math.sqrt(1 / 12 / 40_000)


def test_it_is_given_like_its_argument() -> None:
    assert FrameNoise(0, ROWS, 0)(torch.zeros(4, 3, dtype=torch.float64)).dtype == torch.float64


def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match="seed -1"):
        FrameNoise(-1, ROWS, 0)
    with pytest.raises(ValueError, match="must not be negative"):
        FrameNoise(0, [(0, -1)], 0)
    with pytest.raises(ValueError, match="multiple of 4"):
        FrameNoise(0, ROWS, 0)(torch.zeros(6, 2))
