"""How a rollout is cut up: into slabs of rows, and each slab into blocks of steps.

A *slab* is a rectangle of initial states x members that is computed, written and restarted
together; a *block* is a run of consecutive steps. One slab for one block is one chunk of each
variable on disk, written whole and by one process, so writing needs no locks.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

CHUNK_BYTES = 8 * 2**20  # a chunk of one variable: large enough to compress and to read quickly
SLAB_BYTES = 256 * 2**20  # one step of one slab: well within the codecs' limit of 2 GiB per chunk
BLOCK_STEPS = 64  # the most that a killed run has to compute again
GPU_ROWS = 64
CPU_SHARES = 8  # processes that a rollout can be shared out to without being asked
CPU_POINTS = 4096  # grid points of a batch that keep a core busy


@dataclass(frozen=True)
class Slab:
    """Rows that go together: `initials` x `members`, at position `index` of the chunk grid."""

    index: tuple[int, int]
    initials: range
    members: range

    @property
    def rows(self) -> list[tuple[int, int]]:
        """(initial, member) of every row, members fastest."""
        return [(i, m) for i in self.initials for m in self.members]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.initials), len(self.members)


@dataclass(frozen=True)
class Layout:
    """Sizes of a rollout and of its slabs and blocks.

    Args:
        initials: number of initial states N.
        members: members per initial state M.
        steps: number of frames to sample, a multiple of `every`.
        every: each `every`-th frame is kept.
        slab_initials: initial states per slab.
        slab_members: members per slab.
        block_steps: steps per block, a multiple of `every` and of the sampler's block length.
    """

    initials: int
    members: int
    steps: int
    every: int
    slab_initials: int
    slab_members: int
    block_steps: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name} of a rollout must be at least 1, not {value}.")
        for name in ("steps", "block_steps"):
            if getattr(self, name) % self.every:
                raise ValueError(
                    f"{name} = {getattr(self, name)} is not a multiple of the output interval "
                    f"every = {self.every}: ask for a multiple."
                )

    @property
    def kept(self) -> int:
        """Number of frames kept per member."""
        return self.steps // self.every

    @property
    def kept_per_block(self) -> int:
        return self.block_steps // self.every

    def slabs(self) -> list[Slab]:
        return [
            Slab((a, b), initials, members)
            for a, initials in enumerate(_pieces(self.initials, self.slab_initials))
            for b, members in enumerate(_pieces(self.members, self.slab_members))
        ]

    def blocks(self) -> Iterator[range]:
        """Steps of each block; the last may be short."""
        return _pieces(self.steps, self.block_steps)


def usual_batch_size(rows: int, frame_values: int, device_type: str) -> int:
    """How many rows are best computed at a time; it does not depend on the number of processes.

    A GPU is filled. A CPU gains nothing from more rows than keep a core busy, so that there they
    are split into an eighth of all or that: as many slabs are there for several processes to share,
    and one process writes the same bytes.

    Args:
        rows: members of all initial states.
        frame_values: values of one variable in one frame, H * W.
        device_type: `cpu`, or another.
    """
    if device_type != "cpu":
        return GPU_ROWS
    busy = max(math.ceil(rows / CPU_SHARES), math.ceil(CPU_POINTS / frame_values))
    return max(1, min(busy, math.ceil(rows / 2), GPU_ROWS))


def choose_layout(
    initials: int,
    members: int,
    steps: int,
    *,
    frame_values: int,
    batch_size: int,
    every: int = 1,
    block_length: int = 1,
    block_steps: int | None = None,
) -> Layout:
    """A layout whose slabs hold at most `batch_size` rows and whose chunks have a handy size.

    Args:
        frame_values: values of one variable in one frame, H * W.
        batch_size: the most rows computed at a time.
        block_length: frames that one call of the sampler gives.
        block_steps: steps per block when they are to be chosen by hand.

    Raises:
        ValueError: for sizes below 1, or blocks that cut a call of the sampler or an output
            interval in two.
    """
    for name, value in (("batch_size", batch_size), ("members", members), ("every", every)):
        if value < 1:
            raise ValueError(f"{name} of a rollout must be at least 1, not {value}.")
    rows = max(1, min(batch_size, SLAB_BYTES // (4 * frame_values)))
    slab_members = math.ceil(members / math.ceil(members / rows))  # of even size
    slab_initials = min(max(initials, 1), max(1, rows // members))
    unit = math.lcm(every, block_length)
    if block_steps is None:
        kept = CHUNK_BYTES // (4 * frame_values * slab_members * slab_initials)
        wanted = min(kept * every, BLOCK_STEPS)
        block_steps = max(1, wanted // unit) * unit
    elif block_steps < 1 or block_steps % unit:
        raise ValueError(
            f"block_steps = {block_steps} must be a multiple of {unit}, the frames between two "
            "that are kept and the frames that one call of the sampler gives."
        )
    return Layout(initials, members, steps, every, slab_initials, slab_members, block_steps)


def _pieces(total: int, size: int) -> Iterator[range]:
    return (range(start, min(start + size, total)) for start in range(0, total, size))
