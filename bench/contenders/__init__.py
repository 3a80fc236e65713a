"""Programs that decode many continuations of one prompt, each measured in its own process."""

from .base import NotInstalled, Outcome, Workload

__all__ = ["NotInstalled", "Outcome", "Workload"]
