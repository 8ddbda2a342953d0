"""The U-Net in space and time: its attention by hand, its symmetries, and what a frame costs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dyngen.networks.unet import UNet2d
from dyngen.networks.video_unet import TimeAttention, VideoUNet

WIDTHS = (8, 12)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def awake(network: nn.Module) -> Any:
    """The network with no weight at zero, as after some training, in double precision."""
    with torch.no_grad():
        for parameter in network.parameters():
            fan = parameter[0].numel() if parameter.ndim > 1 else 1
            parameter.add_(0.3 * torch.randn_like(parameter) / math.sqrt(fan))
    return network.double().eval()


def inputs(n: int = 3, k: int = 2, channels: int = 2, size: int = 8) -> tuple[Tensor, ...]:
    """Noisy blocks, labels and past frames of a batch of two."""
    x = torch.randn(2, n, channels, size, size).double()
    past = torch.randn(2, k, channels, size, size).double()
    return x, torch.tensor([-0.5, 0.3]).double(), past


# Attention over time


def test_attention_over_time_by_hand() -> None:
    """Cell by cell: softmax of q.k / sqrt(d) + bias of the distance, over a block's frames."""
    n, heads, d = 3, 2, 4
    layer = awake(TimeAttention(heads * d, n, heads))
    x = torch.randn(2 * n, heads * d, 2, 3).double()
    out = layer(x)
    qkv = layer.qkv(layer.norm(x)).detach()
    for block in range(2):
        for y, right in ((0, 0), (1, 2)):
            q, k, v = qkv[n * block : n * block + n, :, y, right].view(n, 3, heads, d).unbind(1)
            mixed = torch.zeros(n, heads, d).double()
            for head in range(heads):
                for i in range(n):
                    logits = [
                        float(q[i, head] @ k[j, head]) / math.sqrt(d)
                        + layer.bias[head, j - i + n - 1].item()
                        for j in range(n)
                    ]
                    weights = torch.tensor(logits).softmax(0).double()
                    mixed[i, head] = sum(w * v[j, head] for j, w in enumerate(weights))
            ours = x[n * block : n * block + n, :, y, right]
            weight = layer.out.weight[:, :, 0, 0]
            expected = ours + mixed.flatten(1) @ weight.T + layer.out.bias
            torch.testing.assert_close(out[n * block : n * block + n, :, y, right], expected,
                                       rtol=1e-5, atol=1e-5)  # fmt: skip


def test_time_is_relative() -> None:
    """Without the bias it does not know the order of frames; with it the order counts."""
    layer = awake(TimeAttention(8, 4))
    x = torch.randn(4, 8, 2, 2).double()
    reversed_in_time = layer(x.flip(0)).flip(0)
    assert not torch.allclose(reversed_in_time, layer(x), atol=1e-3)
    mirrored = awake(TimeAttention(8, 4))
    mirrored.load_state_dict(layer.state_dict() | {"bias": layer.bias.flip(1)})
    torch.testing.assert_close(mirrored(x.flip(0)).flip(0), layer(x))
    with torch.no_grad():
        layer.bias.zero_()
    order = [2, 0, 3, 1]
    torch.testing.assert_close(layer(x[order]), layer(x)[order])


# The network


@pytest.mark.parametrize("n", [1, 3])
def test_output_is_like_the_block_and_depends_on_all_it_is_given(n: int) -> None:
    network = VideoUNet(2, 2, n, WIDTHS, 1, patch=2)
    x, label, past = inputs(n)
    start = network(x.float(), label.float(), past.float())
    assert torch.equal(start, torch.zeros(x.shape))  # as every residual network of the library
    network = awake(network)
    out = network(x, label, past)
    assert out.shape == x.shape
    changes = [(x + 1, label, past), (x, label + 0.1, past), (x, label, past.flip(1))]
    assert all((network(*change) - out).abs().max() > 1e-3 for change in changes)


def test_every_frame_sees_every_other_and_its_own_lead() -> None:
    network = awake(VideoUNet(2, 2, 3, WIDTHS, 1))
    x, label, past = inputs()
    out = network(x, label, past)
    for frame in range(3):
        changed = x.clone()
        changed[:, frame] += 1
        moved = (network(changed, label, past) - out).abs().amax((0, 2, 3, 4))
        assert bool((moved > 1e-3).all())
    same = network(x[:, :1].expand_as(x), label, past)  # frames that differ by their lead alone
    assert (same[:, 0] - same[:, 2]).abs().max() > 1e-3


def test_blocks_of_a_batch_do_not_mix() -> None:
    network = awake(VideoUNet(2, 2, 3, WIDTHS, 1, attention=(1,)))
    x, label, past = inputs()
    alone = [network(x[i : i + 1], label[i : i + 1], past[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(network(x, label, past), torch.cat(alone))


def test_it_moves_with_its_input_along_periodic_axes_only() -> None:
    x, label, past = inputs(size=16)
    for boundary in (("periodic", "periodic"), ("reflect", "periodic")):
        network = awake(VideoUNet(2, 2, 3, WIDTHS, 1, boundary=boundary, patch=2))
        out = network(x, label, past)
        for axis, mode in zip((-2, -1), boundary, strict=True):
            moved = network(x.roll(4, axis), label, past.roll(4, axis))
            follows = torch.allclose(moved, out.roll(4, axis), atol=1e-9)
            assert follows == (mode == "periodic")


def test_a_block_of_one_is_a_unet_with_the_history_as_context() -> None:
    """The same numbers, for (B, C, H, W) and for (B, 1, C, H, W)."""
    video, image = awake(VideoUNet(2, 2, 1, WIDTHS, 1)), awake(UNet2d(2, 4, WIDTHS, 1))
    video.unet.load_state_dict(image.state_dict())
    x, label, past = inputs(1)
    expected = image(x[:, 0], label, past.flatten(1, 2))
    torch.testing.assert_close(video(x[:, 0], label, past), expected)
    torch.testing.assert_close(video(x, label, past)[:, 0], expected)


def test_a_block_of_one_costs_what_a_unet_does() -> None:
    """At the size of the turbulence experiment."""
    size: dict[str, Any] = {"widths": (64, 96, 128), "blocks": 1, "patch": 2}
    video, image = VideoUNet(1, 2, 1, **size).double(), UNet2d(1, 2, **size).double()
    x, label, past = inputs(1, channels=1, size=32)
    counts = []
    for call in (lambda: video(x, label, past), lambda: image(x[:, 0], label, past.flatten(1, 2))):
        with FlopCounterMode(display=False) as counter:
            call()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]


def test_a_frame_of_a_block_costs_little_more() -> None:
    """Attention over time adds four matrices to the eighteen and more of a residual block."""
    counts = []
    for n in (1, 4):
        x, label, past = inputs(n, size=16)
        network = awake(VideoUNet(2, 2, n, (16, 16), 1))
        with FlopCounterMode(display=False) as counter:
            network(x, label, past)
        counts.append(counter.get_total_flops() / n)
    assert counts[0] < counts[1] < 1.4 * counts[0]


def test_gradients_reach_every_parameter() -> None:
    network = awake(VideoUNet(2, 2, 3, WIDTHS, 1, attention=(1,)))
    network(*inputs()).square().sum().backward()
    silent = [
        name
        for name, p in network.named_parameters()
        if p.grad is None or not bool(p.grad.abs().max() > 0)
    ]
    assert silent == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"history_length": 0}, "at least one frame"),
        ({"block_length": 0}, "at least one frame"),
        ({"block_length": 2, "widths": (6, 6)}, "6 channels cannot be shared out to 4 heads"),
        ({"boundary": ("periodic", "open")}, "boundary is"),
    ],
)
def test_what_is_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        VideoUNet(**{"channels": 1} | change)


def test_blocks_and_histories_of_other_lengths_are_refused() -> None:
    network = VideoUNet(2, 2, 3, WIDTHS, 1).double()
    x, label, past = inputs()
    for frames, history in ((x[:, :2], past), (x, past[:, :1]), (x[:, 0], past)):
        with pytest.raises(ValueError, match="with block_length 3 and history_length 2"):
            network(frames, label, history)
