"""The rollout itself: sample a frame from the last ones, append it, go on.

An ensemble is M members from each of N initial states. Its rows are computed a batch at a time
(`dyngen.rollout.layout` says which go together), a block of steps after another, so that memory
does not grow with the length of the run. `rollout_blocks` yields the blocks, `rollout` collects
them in memory and `write_rollout` writes them to a Zarr that a killed run picks up again.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dyngen.rollout.field import Field
from dyngen.rollout.frame_sampler import FrameSampler
from dyngen.rollout.layout import Layout, Slab, choose_layout, usual_batch_size
from dyngen.rollout.processes import Processes
from dyngen.rollout.progress import FrameProgress
from dyngen.rollout.randomness import FrameNoise
from dyngen.rollout.store import (
    Restart,
    RolloutError,
    RolloutStore,
    prepare_store,
    reopen_store,
)

log = logging.getLogger(__name__)

ALONE = Processes()

# (initial of each row, step) -> what the sampler is given besides the history, (B, ...) each.
Conditioning = Callable[[list[int], int], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Block:
    """Some steps of some rows.

    Args:
        slab: the initial states and members.
        steps: the steps sampled.
        frames: (initials, members, kept frames, C, H, W) normalised, on the CPU.
        diagnostics: name -> (initials, members, kept frames).
        restart: where the slab stands after this block.
    """

    slab: Slab
    steps: range
    frames: Tensor
    diagnostics: dict[str, Tensor]
    restart: Restart


@dataclass(frozen=True)
class Ensemble:
    """A rollout in memory.

    Args:
        frames: (N, M, kept frames, C, H, W).
        diagnostics: name -> (N, M, kept frames).
        frames_per_second: frames sampled per second, over all members.
    """

    frames: Tensor
    diagnostics: dict[str, Tensor]
    frames_per_second: float


@dataclass(frozen=True)
class Written:
    """What `write_rollout` did, over all processes.

    Args:
        frames: frames sampled now; 0 when the rollout was finished already.
        seconds: time it took.
        diagnostics: name -> mean over the frames sampled now.
        years_per_frame: what each frame is of a year, where there is a calendar.
    """

    frames: int
    seconds: float
    diagnostics: dict[str, float]
    years_per_frame: float | None = None

    @property
    def frames_per_second(self) -> float:
        return self.frames / self.seconds if self.seconds else 0.0


def rollout(
    sampler: FrameSampler,
    histories: Tensor,
    *,
    members: int,
    steps: int,
    seed: int,
    batch_size: int = 32,
    every: int = 1,
    denormalise: Callable[[Tensor], Tensor] | None = None,
    conditioning: Conditioning | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Ensemble:
    """Roll out an ensemble in memory.

    Args:
        sampler: gives the next frames.
        histories: (N, k, C, H, W) normalised initial histories, oldest first.
        members: M, members per initial state.
        steps: frames to sample, a multiple of `every`.
        seed: with (initial, member, step) it decides the random numbers.
        batch_size: the most rows computed at a time.
        every: keep each `every`-th frame.
        denormalise: (..., C, H, W) -> physical units; None keeps frames normalised. One that has a
            method `at(frames, initials, steps)` is asked that, for units that depend on the date.
        conditioning: what else the sampler is given, by initial state and step.
        device: where to compute; by default where the histories are.
        progress: whether to show a bar with frames per second.

    Raises:
        ValueError: for sizes below 1 or histories of another length than the sampler's.
        RolloutError: when a frame is not finite.
    """
    layout = layout_for(sampler, histories, members, steps, batch_size=batch_size, every=every)
    kept = (len(histories), members, layout.kept)
    frames: Tensor | None = None
    diagnostics: dict[str, Tensor] = {}
    with FrameProgress(_count(layout.slabs(), steps), shown=progress) as bar:
        for block in rollout_blocks(
            sampler,
            histories,
            layout,
            seed=seed,
            batch_size=batch_size,
            conditioning=conditioning,
            device=device,
            on_frames=bar.advance,
        ):
            physical = _physical(denormalise, block, every)
            if frames is None:
                frames = physical.new_empty(*kept, *physical.shape[3:])
            where = _where(block, every)
            frames[where] = physical
            for name, values in block.diagnostics.items():
                diagnostics.setdefault(name, values.new_empty(kept))[where] = values
        assert frames is not None  # a layout has a block
        return Ensemble(frames, diagnostics, bar.frames_per_second)


def write_rollout(
    path: str | PathLike[str],
    sampler: FrameSampler,
    histories: Tensor,
    field: Field,
    *,
    members: int,
    steps: int,
    seed: int,
    settings: Mapping[str, Any],
    provenance: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    block_steps: int | None = None,
    every: int = 1,
    denormalise: Callable[[Tensor], Tensor] | None = None,
    conditioning: Conditioning | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
    processes: Processes = ALONE,
) -> Written:
    """Roll out an ensemble into a Zarr, going on where an earlier run of the same stopped.

    A rollout that is finished is left alone; asked for more steps, it is extended. The same call
    on the same machine gives the same bytes, interrupted or not.

    Args:
        path: the Zarr directory; see `dyngen.rollout.store` for what is in it.
        field: variables, grid and initial times.
        settings: what else decides the numbers, such as the digest of the checkpoint; seed,
            members, initial states, sampler and grid are added. Other settings are refused.
        provenance: what else to remember, such as the configuration.
        block_steps: steps written (and lost by a kill, at most) at a time; chosen by default.
        batch_size: the most rows computed at a time, and of a new rollout the rows of a slab. By
            default slabs are computed whole, and those of a new rollout are of a usual size.
        processes: this process and the others that write the same rollout, each its share of the
            slabs. The bytes do not depend on their number, and the number may change from one run
            to the next.

    See `rollout` for the rest.

    Raises:
        ValueError: for sizes below 1 or histories that do not fit the sampler or the field.
        RolloutError: when a frame is not finite, the disk is full, or `path` holds something else.
    """
    _check_field(field, histories)
    device = histories.device if device is None else torch.device(device)
    frame_values = histories.shape[-2] * histories.shape[-1]
    usual = usual_batch_size(len(histories) * members, frame_values, device.type)

    def prepare() -> RolloutStore:
        if not processes.first and processes.group is not None:
            return reopen_store(path)
        layout = layout_for(
            sampler,
            histories,
            members,
            steps,
            batch_size=usual if batch_size is None else batch_size,
            every=every,
            block_steps=block_steps,
        )
        return prepare_store(
            path,
            field,
            layout,
            settings={
                **settings,
                "seed": seed,
                "sampler": sampler.description(),
                "initial histories": _digest(histories),
            },
            provenance=provenance,
            diagnostics=sampler.diagnostic_names,
        )

    store = processes.after_first(prepare)
    years = field.years_per_step
    if store.complete:
        return Written(0, 0.0, {}, years)
    slabs = store.layout.slabs()[processes.rank :: processes.count]
    _tell_idle(store.layout, processes)
    restarts = {s.index: r for s in slabs if (r := store.restart(s)) is not None}
    done = sum(
        len(slab.rows) * (r.written if r.written >= store.layout.steps else r.step)
        for slab in slabs
        if (r := restarts.get(slab.index))
    )
    frames = 0
    sums: dict[str, float] = {}
    started = time.perf_counter()
    several = processes.count > 1
    with (
        ThreadPoolExecutor(1) as writer,  # writes a block while the next one is sampled
        FrameProgress(
            _count(slabs, store.layout.steps),
            done,
            shown=progress and processes.first,
            years_per_frame=years,
            label=f"rollout, process 1 of {processes.count}" if several else "rollout",
        ) as bar,
    ):
        writing: Future[None] | None = None
        for block in rollout_blocks(
            sampler,
            histories,
            store.layout,
            slabs=slabs,
            restarts=restarts,
            seed=seed,
            batch_size=batch_size,
            conditioning=conditioning,
            device=device,
            on_frames=bar.advance,
        ):
            physical = _physical(denormalise, block, every)
            if writing is not None:
                writing.result()  # in order, and at most one block waits in memory
            writing = writer.submit(
                store.write, block.slab, block.steps, physical, block.diagnostics, block.restart
            )
            frames += len(block.slab.rows) * len(block.steps)
            for name, values in block.diagnostics.items():
                sums[name] = sums.get(name, 0.0) + values.mean().item() * values.numel() * every
        if writing is not None:
            writing.result()
    shares = processes.gather((frames, time.perf_counter() - started, sums))
    if processes.first or processes.group is None:
        store.finish(certain=processes.group is not None)
    total = sum(count for count, _, _ in shares)
    means = {
        name: sum(found.get(name, 0.0) for _, _, found in shares) / total
        for name in sorted({name for _, _, found in shares for name in found})
    }
    return Written(total, max(seconds for _, seconds, _ in shares), means, years)


def rollout_blocks(
    sampler: FrameSampler,
    histories: Tensor,
    layout: Layout,
    *,
    seed: int,
    slabs: Sequence[Slab] | None = None,
    restarts: Mapping[tuple[int, int], Restart] | None = None,
    batch_size: int | None = 32,
    conditioning: Conditioning | None = None,
    device: torch.device | str | None = None,
    on_frames: Callable[[int], None] | None = None,
) -> Iterator[Block]:
    """Yield a rollout block by block: all slabs' first block, all slabs' second, and so on.

    Args:
        slabs: which slabs to compute; by default all of the layout's.
        restarts: where slabs stand, by their index; the others start from the histories.
        batch_size: the most rows computed at a time; None computes slabs whole.
        on_frames: told the number of frames after each call of the sampler.

    See `rollout` for the rest.

    Raises:
        ValueError: for histories that do not fit the sampler or the layout.
        RolloutError: when a frame is not finite, naming its initial state, member and step.
    """
    device = histories.device if device is None else torch.device(device)
    slabs = layout.slabs() if slabs is None else slabs
    states = {slab.index: _start(slab, histories) for slab in slabs} | dict(restarts or {})
    for steps in layout.blocks():
        for slab in slabs:
            state = states[slab.index]
            if steps.stop <= state.written:
                continue
            history = torch.from_numpy(state.history).flatten(0, 1)
            parts = [
                _advance(
                    sampler,
                    history[part],
                    slab.rows[part],
                    steps,
                    every=layout.every,
                    seed=seed,
                    conditioning=conditioning,
                    device=device,
                    on_frames=on_frames or (lambda frames: None),
                )
                for part in _batches(len(slab.rows), batch_size or len(slab.rows))
            ]
            frames = torch.cat([part.frames for part in parts]).unflatten(0, slab.shape)
            diagnostics = {
                name: torch.cat([part.diagnostics[name] for part in parts]).unflatten(0, slab.shape)
                for name in parts[0].diagnostics
            }
            if len(steps) == layout.block_steps:
                history = torch.cat([part.history for part in parts]).unflatten(0, slab.shape)
                state = Restart(history.numpy(), steps.stop, steps.stop)
            else:  # a short last block: an extension will begin with it again
                state = Restart(state.history, state.step, steps.stop)
            states[slab.index] = state
            yield Block(slab, steps, frames, diagnostics, state)


def layout_for(
    sampler: FrameSampler,
    histories: Tensor,
    members: int,
    steps: int,
    *,
    batch_size: int = 32,
    every: int = 1,
    block_steps: int | None = None,
) -> Layout:
    """The slabs and blocks of a rollout of this sampler from these (N, k, C, H, W) histories.

    Raises:
        ValueError: for sizes below 1 or histories of another length than the sampler's.
    """
    if histories.ndim != 5 or histories.shape[1] != sampler.history_length:
        raise ValueError(
            f"initial histories have shape {tuple(histories.shape)}; this sampler takes "
            f"(N, {sampler.history_length}, C, H, W)."
        )
    return choose_layout(
        len(histories),
        members,
        steps,
        frame_values=histories.shape[-2] * histories.shape[-1],
        batch_size=batch_size,
        every=every,
        block_length=sampler.block_length,
        block_steps=block_steps,
    )


@dataclass(frozen=True)
class _Advanced:
    """A batch of rows after some steps."""

    frames: Tensor  # (R, kept, C, H, W)
    diagnostics: dict[str, Tensor]  # (R, kept) each
    history: Tensor  # (R, k, C, H, W)


def _advance(
    sampler: FrameSampler,
    history: Tensor,
    rows: list[tuple[int, int]],
    steps: range,
    *,
    every: int,
    seed: int,
    conditioning: Conditioning | None,
    device: torch.device,
    on_frames: Callable[[int], None],
) -> _Advanced:
    """Sample `steps` for a batch of rows, from their history (R, k, C, H, W) on the CPU."""
    history = history.to(device)
    kept: list[Tensor] = []
    diagnostics: dict[str, list[Tensor]] = {}
    for step in range(steps.start, steps.stop, sampler.block_length):
        extra = conditioning([i for i, _ in rows], step) if conditioning else {}
        extra = {name: values.to(device) for name, values in extra.items()}
        frames, figures = sampler(history, FrameNoise(seed, rows, step), **extra)
        _check_finite(frames, rows, step)
        history = torch.cat([history, frames], dim=1)[:, -sampler.history_length :]
        wanted = range(step, min(step + sampler.block_length, steps.stop))
        for now in wanted:
            if (now + 1) % every == 0:
                kept.append(frames[:, now - step].cpu())
                for name, values in figures.items():
                    diagnostics.setdefault(name, []).append(values.cpu())
        on_frames(len(rows) * len(wanted))
    return _Advanced(
        torch.stack(kept, dim=1),
        {name: torch.stack(values, dim=1) for name, values in diagnostics.items()},
        history.cpu(),
    )


def _check_finite(frames: Tensor, rows: list[tuple[int, int]], step: int) -> None:
    finite = frames.isfinite().flatten(2).all(-1)  # (R, n)
    if bool(finite.all()):
        return
    row, offset = (~finite).nonzero()[0].tolist()
    initial, member = rows[row]
    raise RolloutError(
        f"Member {member} of initial state {initial} is not finite at step {step + offset + 1}: "
        "the rollout stops there and everything written before is kept; a model trained longer, "
        "more noise levels or a smaller guidance scale may hold it."
    )


def _start(slab: Slab, histories: Tensor) -> Restart:
    initial = histories[slab.initials.start : slab.initials.stop].detach().cpu().float()
    copies = initial[:, None].expand(-1, len(slab.members), *initial.shape[1:])
    return Restart(copies.contiguous().numpy(), step=0, written=0)


def _batches(rows: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, rows, size))


def _physical(denormalise: Callable[[Tensor], Tensor] | None, block: Block, every: int) -> Tensor:
    """The frames of a block in physical units, at their own dates where these matter."""
    if denormalise is None:
        return block.frames
    at = getattr(denormalise, "at", None)
    if at is None:
        return denormalise(block.frames)
    kept = [step for step in block.steps if (step + 1) % every == 0]
    physical: Tensor = at(block.frames, block.slab.initials, kept)
    return physical


def _tell_idle(layout: Layout, processes: Processes) -> None:
    """Say once when there is less to share out than there are processes."""
    idle = processes.count - len(layout.slabs())
    if idle > 0 and processes.first:
        rows = layout.initials * layout.members
        log.warning(
            "%d of %d processes have nothing to do: a rollout is shared out by batches, and this "
            "one has %d; start it anew with a batch_size of at most %d, or with fewer processes.",
            idle,
            processes.count,
            len(layout.slabs()),
            max(1, rows // processes.count),
        )


def _where(block: Block, every: int) -> tuple[slice, slice, slice]:
    initials, members = block.slab.initials, block.slab.members
    return (
        slice(initials.start, initials.stop),
        slice(members.start, members.stop),
        slice(block.steps.start // every, block.steps.stop // every),
    )


def _count(slabs: Sequence[Slab], steps: int) -> int:
    return steps * sum(len(slab.rows) for slab in slabs)


def _digest(histories: Tensor) -> str:
    values = np.ascontiguousarray(histories.detach().cpu().float().numpy())
    return hashlib.sha256(values.tobytes()).hexdigest()[:16]


def _check_field(field: Field, histories: Tensor) -> None:
    count, _, channels, *size = histories.shape
    for what, here, there in (
        ("initial states", count, len(field.initial_times)),
        ("channels", channels, len(field.variables)),
        ("grid", tuple(size), tuple(field.shape)),
    ):
        if here != there:
            raise ValueError(
                f"the histories have {what} {here} and the field to be written has {there}: "
                "they must be of the same cube."
            )
