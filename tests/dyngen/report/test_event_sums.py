"""Scores of events against scoringrules and the definitions, with gaps and area weights."""

import math

import numpy as np
import pytest
import scoringrules
import torch
from yardsticks import draw, with_gaps, yardstick

from dyngen.metrics.events import reliability_diagram, roc_curve
from dyngen.metrics.scales import fractions_skill
from dyngen.report.event_sums import (
    POINTS,
    event_diagrams,
    event_frequency_sums,
    event_scores,
    event_sums,
    fitting,
)
from dyngen.report.forecast_sums import ForecastSums, forecast_sums

THRESHOLDS = torch.tensor([0.3, 1.1], dtype=torch.float64)


def summed(initials: int = 4, members: int = 5, split: int = 4) -> tuple[ForecastSums, tuple]:
    """Sums of forecasts with gaps, read so many initial states at a time."""
    ensemble, truth, area = with_gaps(initials, members, 2, 4, 6)
    blocks = [slice(i, i + split) for i in range(0, initials, split)]

    def measure(*block: object) -> dict[str, torch.Tensor]:
        return event_sums(*block, thresholds=THRESHOLDS, widths=(1, 3))  # type: ignore[arg-type]

    sums = forecast_sums(
        lambda b: ensemble[b],
        lambda b: truth[b, None],
        yardstick(4, 6, area=area, periodic=(False, True)),
        blocks=blocks,
        measures=[measure],
    )
    return sums, (ensemble, truth, area)


def test_scores_are_those_of_the_definitions() -> None:
    sums, (ensemble, truth, area) = summed()
    found = event_scores(sums, torch.ones(1, 4, dtype=torch.float64))
    for q, threshold in enumerate(THRESHOLDS.tolist()):
        for lead in range(2):
            there = ~truth[:, lead].isnan() & (area > 0)
            weight = area.expand(4, 4, 6)[there].numpy()
            members = ensemble[:, :, lead].movedim(1, -1)[there].numpy()
            came = truth[:, lead][there].numpy()
            brier = scoringrules.brier_score(
                (came > threshold).astype(float), (members > threshold).mean(-1)
            )
            tail = scoringrules.twcrps_ensemble(came, members, a=threshold, estimator="fair")
            expected = {
                "brier": np.average(brier, weights=weight),
                "threshold_weighted_crps": np.average(tail, weights=weight),
            }
            for name, value in expected.items():
                assert math.isclose(found[name][1][0, q, lead], value, rel_tol=1e-9), name
            fractions = fractions_skill(
                ensemble[:, :, lead].nan_to_num(0.0),
                truth[:, lead],
                threshold,
                [1, 3],
                member_dim=1,
                periodic=(False, True),
                weights=area,
            )
            torch.testing.assert_close(found["fractions_skill"][1][0, q, lead], fractions.score)


def test_diagrams_are_of_all_leads() -> None:
    sums, _ = summed()
    found = event_diagrams(sums, torch.ones(1, 4, dtype=torch.float64))
    table = sums.further["event_counts"].sum((0, 2))
    diagram, curve = reliability_diagram(table), roc_curve(table)
    assert found["reliability_frequency"][0] == ("exceedance", "diagram")
    pairs = [
        (found["reliability_frequency"], diagram.frequency),
        (found["reliability_share"], diagram.share),
        (found["roc_hit_rate"], curve.hit_rate),
        (found["roc_false_alarm_rate"], curve.false_alarm_rate),
    ]
    for (_, values), expected in pairs:
        torch.testing.assert_close(values[0], expected, equal_nan=True)
    many, _ = summed(2, 3 * POINTS)
    found = event_diagrams(many, torch.ones(1, 2, dtype=torch.float64))
    assert found["reliability_frequency"][1].shape == (1, 2, POINTS)


def test_resampling_counts_an_initial_state_as_often_as_it_is_drawn() -> None:
    sums, (ensemble, truth, area) = summed()
    counts = torch.tensor([[2.0, 0, 1, 1]], dtype=torch.float64)
    drawn = [0, 0, 2, 3]
    again = forecast_sums(
        lambda b: ensemble[drawn][b],
        lambda b: truth[drawn][b, None],
        yardstick(4, 6, area=area, periodic=(False, True)),
        blocks=[slice(0, 4)],
        measures=[lambda *block: event_sums(*block, thresholds=THRESHOLDS, widths=(1, 3))],
    )
    found = event_scores(sums, counts)
    for name, (_, values) in event_scores(again, torch.ones(1, 4, dtype=torch.float64)).items():
        torch.testing.assert_close(found[name][1], values, equal_nan=True)


def test_a_missing_forecast_is_told_where_it_is() -> None:
    ensemble, truth = draw(3, 4, 2, 4, 4), draw(3, 2, 4, 4, seed=1)
    ensemble[1, 2, 1, 0, 0] = math.nan
    found = event_sums(ensemble, truth, yardstick(4, 4), thresholds=THRESHOLDS, widths=(1,))
    for part in found.values():
        bad = part.flatten(3).isnan().any(-1) if part.ndim > 3 else part.isnan()
        assert bad.nonzero().tolist() == [[1, 0, 1], [1, 1, 1]]


def test_the_frequency_of_the_event_is_that_of_the_truth() -> None:
    ensemble, truth, area = with_gaps(3, 2, 2, 4, 6)
    sums = event_frequency_sums(ensemble, truth, yardstick(4, 6, area=area), thresholds=THRESHOLDS)[
        "event_frequency"
    ].sum(0)
    for q, threshold in enumerate(THRESHOLDS.tolist()):
        for lead in range(2):
            there = ~truth[:, lead].isnan()
            came = (truth[:, lead] > threshold)[there].double()
            expected = np.average(came.numpy(), weights=area.expand(3, 4, 6)[there].numpy())
            assert math.isclose(sums[q, lead, 0] / sums[q, lead, 1], expected, rel_tol=1e-12)


def test_neighbourhoods_that_do_not_fit_are_left_out() -> None:
    assert fitting((3, 9, 5), (8, 20)) == (1, 3, 5)
    with pytest.raises(ValueError, match="a neighbourhood of 4 cells has no centre"):
        fitting((1, 4), (8, 8))
