"""Rollouts: ensembles of trajectories, sampled frame after frame.

A `FrameSampler` gives the next frame from the last ones, `rollout` and `write_rollout` repeat it
for all members and initial states, in memory or into a Zarr that can be resumed and extended, and
`open_rollout` reads that with xarray. Every random number follows from (seed, initial state,
member, step), so that no result depends on the batch size, the device or an interruption.
"""

from dyngen.rollout.ensemble import (
    Block,
    Ensemble,
    Written,
    layout_for,
    rollout,
    rollout_blocks,
    write_rollout,
)
from dyngen.rollout.field import Field
from dyngen.rollout.frame_sampler import ConditionalFrameSampler, FrameSampler, GuidedFrameSampler
from dyngen.rollout.layout import Layout, Slab
from dyngen.rollout.processes import Processes, together
from dyngen.rollout.randomness import FrameNoise
from dyngen.rollout.sampling import Sampling, frame_sampler, weights_digest
from dyngen.rollout.store import (
    OtherSettings,
    RolloutError,
    open_rollout,
    prepare_store,
)

__all__ = [
    "Block",
    "ConditionalFrameSampler",
    "Ensemble",
    "Field",
    "FrameNoise",
    "FrameSampler",
    "GuidedFrameSampler",
    "Layout",
    "OtherSettings",
    "Processes",
    "RolloutError",
    "Sampling",
    "Slab",
    "Written",
    "frame_sampler",
    "layout_for",
    "open_rollout",
    "prepare_store",
    "rollout",
    "rollout_blocks",
    "together",
    "weights_digest",
    "write_rollout",
]
