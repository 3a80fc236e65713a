"""Speculative decoding: cheap guesses at the next tokens, verified by the policy in one pass."""

from ttc_runtime.speculation.drafts import Draft, Drafter
from ttc_runtime.speculation.model import ModelDrafter
from ttc_runtime.speculation.ngram import NgramDrafter
from ttc_runtime.speculation.settings import Speculation
from ttc_runtime.speculation.speculator import Speculator

__all__ = ["Draft", "Drafter", "ModelDrafter", "NgramDrafter", "Speculation", "Speculator"]
