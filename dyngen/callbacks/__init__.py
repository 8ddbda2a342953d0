"""Lightning callbacks: averaged weights, costs, progress and rollout evaluation."""

from dyngen.callbacks.averaging import ExponentialMovingAverage
from dyngen.callbacks.cost import TrainingCost
from dyngen.callbacks.last_checkpoint import LastCheckpoint
from dyngen.callbacks.progress import TrainingProgress
from dyngen.callbacks.rollout_evaluation import RolloutEvaluation

__all__ = [
    "ExponentialMovingAverage",
    "LastCheckpoint",
    "RolloutEvaluation",
    "TrainingCost",
    "TrainingProgress",
]
