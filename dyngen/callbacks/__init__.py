"""Lightning callbacks: averaged weights and rollout evaluation."""

from dyngen.callbacks.averaging import ExponentialMovingAverage
from dyngen.callbacks.rollout_evaluation import RolloutEvaluation

__all__ = ["ExponentialMovingAverage", "RolloutEvaluation"]
