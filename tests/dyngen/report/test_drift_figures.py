"""Figures of a drift: nothing is written over anything else."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg

from dyngen.report.drift_figures import annual_means


@pytest.mark.parametrize("level", [285.1, 98763.0, 3e-5])
def test_names_of_annual_means_stand_clear_of_the_ticks_power_of_ten(level: float) -> None:
    rng = np.random.default_rng(0)
    own, run = (level * (1 + 1e-5 * rng.normal(size=n)) for n in (29, 99))
    curves = xr.Dataset(
        {"annual_mean": (("member", "year"), run[None]), "reference_annual_mean": ("own", own)},
        {"year": np.arange(2009, 2108)},
        {"units": "Pa"},
    )
    figure = annual_means(curves)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    (axes,) = figure.axes
    power = axes.yaxis.get_offset_text()
    assert power.get_text() or level == 285.1
    assert not power.get_text().startswith("+")
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in (power, *axes.texts)]
    assert not any(boxes[0].overlaps(box) for box in boxes[1:])
