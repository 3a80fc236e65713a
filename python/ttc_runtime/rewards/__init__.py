"""Process reward models: formats as data, and the models that score steps."""

from __future__ import annotations

from ttc_runtime.rewards.model import RewardModel
from ttc_runtime.rewards.spec import AGGREGATIONS, RewardSpec, aggregate

__all__ = ["AGGREGATIONS", "RewardModel", "RewardSpec", "aggregate"]
