"""Errors of large scale on past frames."""

import torch

from experiments.speedy.smooth_errors import SmoothErrors


def test_past_frames_share_an_error_and_the_present_one_has_none() -> None:
    torch.manual_seed(0)
    frames = torch.zeros(6, 3, 2, 48, 96)
    SmoothErrors(0.5).on_train_batch_start(None, None, {"frames": frames}, 0)
    assert frames[:, -1].abs().max() == 0
    assert torch.equal(frames[:, 0], frames[:, 1])
    assert (frames[:, 0].flatten(2).std(-1) > 0).all()


def test_errors_are_smooth_around_the_globe_and_have_their_size() -> None:
    torch.manual_seed(1)
    field = SmoothErrors(0.5).errors(torch.zeros(400, 3, 1, 48, 96))
    # The square of a level drawn evenly between 0 and 0.5 is 1/12 on average; interpolation
    # between cells takes up to half of the part that varies along both axes, and more of none.
    assert 0.5 / 12 < field.square().mean() < 1.1 / 12
    along = (field - field.roll(1, dims=-1)).square().mean((0, 1, 2))
    assert along[0] < 2 * along.mean()  # where the row closes it is as smooth as elsewhere
    assert along.max() < 0.02 * field.square().mean() * 3
    assert field.mean((-2, -1)).std() > 0.1  # the mean over everything is disturbed too
