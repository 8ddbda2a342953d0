"""Lightning callbacks: averaged weights, progress and rollout evaluation."""

from dyngen.callbacks.averaging import ExponentialMovingAverage
from dyngen.callbacks.progress import TrainingProgress
from dyngen.callbacks.rollout_evaluation import RolloutEvaluation

__all__ = ["ExponentialMovingAverage", "RolloutEvaluation", "TrainingProgress"]
