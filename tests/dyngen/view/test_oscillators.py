"""The page's oscillators against those of the library, and against a garden's known modes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor

from data_modules.simulated_garden import write_garden
from dyngen.motion import modes as library
from dyngen.motion.modes import ModalState, Modes
from dyngen.simulate.garden import Garden, Layer, scene
from dyngen.view.page import view

pytestmark = pytest.mark.browser

SETUP = """
const pairs = (rows) => Float64Array.from(rows.flat());
const made = (given) => ({
  angular: Float64Array.from(given.angular), damping: Float64Array.from(given.damping),
  farthest: Float64Array.from(given.farthest),
});
const told = (state) => [[...state.position], [...state.velocity]];
"""


@pytest.fixture(scope="module")
def tab(open_page: Any, page: Path) -> Any:
    return open_page(page)


@pytest.fixture(scope="module")
def modes() -> Modes:
    generator = torch.Generator().manual_seed(0)
    shapes = torch.randn(5, 2, 6, 8, dtype=torch.complex128, generator=generator)
    frequencies = torch.tensor([0.5, 0.9, 1.4, 2.2, 5.0], dtype=torch.float64)
    damping = torch.tensor([0.001, 0.02, 0.1, 0.4, 0.03], dtype=torch.float64)
    return Modes(shapes, frequencies, damping)


def as_page(modes: Modes) -> dict[str, Any]:
    """What the page's oscillators take for modes."""
    return {
        "angular": modes.angular.tolist(),
        "damping": modes.damping.tolist(),
        "farthest": modes.shapes.abs().square().sum(1).amax((1, 2)).sqrt().tolist(),
    }


def pairs(values: Tensor) -> Any:
    return torch.view_as_real(values).tolist()


def complexes(values: list[float]) -> Tensor:
    return torch.view_as_complex(torch.tensor(values, dtype=torch.float64).view(-1, 2))


def test_the_same_forces_make_the_same_motion(tab: Any, modes: Modes) -> None:
    generator = torch.Generator().manual_seed(1)
    forces = 30 * torch.randn(90, 5, dtype=torch.complex128, generator=generator)
    forces[60:] = 0
    durations = (0.002 + 0.04 * torch.rand(90, generator=generator)).double()
    state = library.rest(modes)
    expected, energies = [], []
    for force, duration in zip(forces, durations.tolist(), strict=True):
        state = library.step(modes, state, duration, force)
        expected.append(torch.stack(state))
        energies.append(library.energy(modes, state, duration))
    found = tab.evaluate(
        """([modes, forces, durations]) => {"""
        + SETUP
        + """
          const tuned = made(modes), state = oscillators.rest(5);
          return forces.map((force, n) => {
            oscillators.step(tuned, state, durations[n], pairs(force));
            return [told(state), [...oscillators.energy(tuned, state, durations[n])]];
          });
        }""",
        [as_page(modes), [pairs(force) for force in forces], durations.tolist()],
    )
    for n, ((position, velocity), energy) in enumerate(found):
        theirs = torch.stack([complexes(position), complexes(velocity)])
        torch.testing.assert_close(theirs, expected[n], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(torch.tensor(energy).double(), energies[n], rtol=1e-6, atol=1e-6)
    assert expected[-1].abs().max() > 0.1


@pytest.mark.parametrize("reach", [math.inf, 3.0])
@pytest.mark.parametrize("offset", [(2.0, -1.0), (0.0, 4.0)])
def test_the_same_hand_holds_the_same(
    tab: Any, modes: Modes, offset: tuple[float, float], reach: float
) -> None:
    point = (3.25, 2.5)
    target = library.hold(modes, point, offset, reach)
    held = torch.tensor([True, False, True, True, False])
    start = ModalState(0.1 * target.conj(), 0.2 * target)
    state = start
    for _ in range(10):
        state = library.pull(modes, state, 1 / 60, target, held)
    shapes = torch.view_as_real(library.shapes_at(modes, point)).flatten().tolist()
    answer = tab.evaluate(
        """([modes, shapes, offset, reach, position, velocity, held]) => {"""
        + SETUP
        + """
          const tuned = made(modes), still = new Float64Array(10);
          const at = Float64Array.from(shapes);
          const target = oscillators.hold(tuned, at, offset, reach ?? Infinity);
          const state = { position: pairs(position), velocity: pairs(velocity) };
          for (let n = 0; n < 10; n++) oscillators.step(tuned, state, 1 / 60, still, held, target);
          return [[...target], ...told(state)];
        }""",
        [
            *(as_page(modes), shapes, list(offset), None if math.isinf(reach) else reach),
            *(pairs(start.position), pairs(start.velocity), held.tolist()),
        ],
    )
    for theirs, ours in zip(answer, (target, *state), strict=True):
        torch.testing.assert_close(complexes(theirs), ours, rtol=1e-9, atol=1e-9)


def test_a_line_that_cannot_be_pulled_across_stays(tab: Any) -> None:
    """All shapes along one direction: only that part of a pull counts, as in the library."""
    shapes = torch.zeros(2, 2, 1, 1, dtype=torch.complex128)
    shapes[:, 0], shapes[:, 1] = 3.0, 4.0
    modes = Modes(shapes, torch.tensor([1.0, 2.0]).double(), torch.tensor([0.1, 0.1]).double())
    expected = library.hold(modes, (0, 0), (1.0, 0.0))
    found = tab.evaluate(
        """([modes, shapes]) => {"""
        + SETUP
        + """
          const at = Float64Array.from(shapes);
          return [...oscillators.hold(made(modes), at, [1, 0], Infinity)];
        }""",
        [as_page(modes), [3, 0, 4, 0, 3, 0, 4, 0]],
    )
    torch.testing.assert_close(complexes(found), expected)
    moved = library.displacement_of(modes, expected)[:, 0, 0]
    torch.testing.assert_close(moved, torch.tensor([0.36, 0.48]).double())


# A garden, whose modes are known

GARDEN = Garden(
    width=96, height=64, frames=119, sway=4.0, lowest=0.7, highest=2.5,
    stems=2, pendulums=0, cloths=0, water=False, seed=5,
)  # fmt: skip


@pytest.fixture(scope="module")
def garden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("garden")
    path = write_garden(
        folder / "motion.zarr", GARDEN, clips=1, frames=False, workers=1, progress=False
    )
    return view(path, folder / "page", damping=1e-4)


def known(layer: Layer, places: Tensor, told: list[dict[str, float]]) -> Modes:
    """The modes of a stem as they were drawn, seen at places (N, 2): an image of one row."""
    shapes = torch.stack([mode.shape(places).t()[:, None] for mode in layer.modes])
    return Modes(
        shapes.to(torch.complex128),
        torch.tensor([mode["frequency"] for mode in told], dtype=torch.float64),
        torch.tensor([mode["damping"] for mode in told], dtype=torch.float64),
    )


def swayed(modes: Modes, position: Tensor) -> Tensor:
    """Where the first place goes in two seconds after it is let go, (120, 2)."""
    state, path = ModalState(position, torch.zeros_like(position)), []
    for _ in range(120):
        state = library.step(modes, state, 1 / 60)
        path.append(library.displacement_of(modes, state.position)[:, 0, 0])
    return torch.stack(path)


def test_a_stem_of_the_garden_answers_as_its_modes_say(open_page: Any, garden: Path) -> None:
    """Pulled by its head it bends, alone, as the modes it was drawn with, and sways on so."""
    clip = xr.open_zarr(garden.parents[1] / "motion.zarr", consolidated=False).isel(clip=0)
    objects = torch.from_numpy(clip["object"].values.astype(np.int64))
    things = json.loads(str(clip["scene"].values))
    stem, other = (n for n, thing in enumerate(things) if thing["kind"] == "stem")
    layers = scene(GARDEN)
    rows, columns = (objects == stem).nonzero(as_tuple=True)
    inside = (columns - columns.float().median()).abs() < 3
    rows, columns = rows[inside], columns[inside]
    order = rows.argsort()[:: max(1, len(rows) // 40)]
    points = torch.stack([columns[order], rows[order]], 1)  # from the head down
    tab = open_page(garden)
    head = [int(v) for v in points[3]]
    elsewhere = (objects == other).nonzero()[:, [1, 0]].tolist()[::20]
    answer = tab.evaluate(
        """([head, points, elsewhere]) => {
          const { pull, release, tick, displacementAt, hand } = dyngen;
          document.getElementById("calm").click();
          dyngen.grab(head);
          pull([3, 0]);
          const anchor = hand().anchor;
          for (let n = 0; n < 120; n++) tick(1 / 60);
          const bent = points.map(displacementAt), still = elsewhere.map(displacementAt);
          dyngen.state.velocity.fill(0);
          release();
          const swaying = [];
          for (let n = 0; n < 120; n++) { tick(1 / 60); swaying.push(displacementAt(anchor)); }
          document.getElementById("calm").click();
          return { anchor, bent, still, swaying, reach: dyngen.reach() };
        }""",
        [head, points.tolist(), elsewhere],
    )
    assert np.abs(answer["still"]).max() == 0
    places = torch.cat([torch.tensor([answer["anchor"]]), points]).float()
    true = known(layers[stem], places, things[stem]["modes"])
    target = library.hold(true, (0, 0), (3.0, 0.0), answer["reach"])
    field = library.displacement_of(true, target)[:, 0].t()  # (1 + N, 2)
    bent = torch.tensor(answer["bent"], dtype=torch.float64)
    assert field[0].norm() > 1.5
    assert (bent - field[1:]).norm() < 0.1 * field[1:].norm()
    swaying = torch.tensor(answer["swaying"], dtype=torch.float64)
    expected = swayed(true, target)
    assert (swaying - expected).norm() < 0.2 * expected.norm()
    stiffer = replace(true, frequencies=1.3 * true.frequencies)
    assert (swaying - swayed(stiffer, target)).norm() > 0.5 * expected.norm()  # not by other modes
