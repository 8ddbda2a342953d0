"""How a rollout is cut up: every row and step once, in pieces of the promised size."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dyngen.rollout.layout import SLAB_BYTES, Layout, choose_layout

sizes = st.integers(1, 40)


@settings(max_examples=200, deadline=None)
@given(sizes, sizes, sizes, sizes, st.integers(1, 5), st.integers(1, 4), st.integers(1, 10**6))
def test_slabs_and_blocks_cover_everything_once(
    initials: int, members: int, blocks: int, batch: int, every: int, length: int, values: int
) -> None:
    layout = choose_layout(
        initials,
        members,
        blocks * every,
        frame_values=values,
        batch_size=batch,
        every=every,
        block_length=length,
    )
    rows = [row for slab in layout.slabs() for row in slab.rows]
    assert sorted(rows) == [(i, m) for i in range(initials) for m in range(members)]
    steps = [step for block in layout.blocks() for step in block]
    assert steps == list(range(blocks * every))
    assert layout.block_steps % every == layout.block_steps % length == 0
    for slab in layout.slabs():
        assert len(slab.rows) <= batch
        assert 4 * values * len(slab.rows) <= max(SLAB_BYTES, 4 * values)
        assert slab.shape == (len(slab.initials), len(slab.members))


def test_members_are_shared_out_evenly() -> None:
    layout = choose_layout(1, 10, 5, frame_values=100, batch_size=8)
    assert [len(slab.rows) for slab in layout.slabs()] == [5, 5]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"members": 0}, "members of a rollout must be at least 1, not 0"),
        ({"initials": 0}, "initials of a rollout must be at least 1, not 0"),
        ({"steps": 0}, "steps of a rollout must be at least 1, not 0"),
        ({"batch_size": 0}, "batch_size of a rollout must be at least 1"),
        ({"every": 3}, "steps = 10 is not a multiple of the output interval every = 3"),
        ({"block_steps": 3, "block_length": 2}, "block_steps = 3 must be a multiple of 2"),
    ],
)
def test_what_is_refused(change: dict[str, int], sentence: str) -> None:
    arguments = {"initials": 2, "members": 2, "steps": 10, "frame_values": 4, "batch_size": 4}
    with pytest.raises(ValueError, match=sentence):
        choose_layout(**(arguments | change))


def test_a_layout_of_ones_own_is_checked() -> None:
    with pytest.raises(ValueError, match="block_steps = 5 is not a multiple"):
        Layout(1, 1, 4, every=2, slab_initials=1, slab_members=1, block_steps=5)
