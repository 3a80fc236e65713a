"""Formats of process reward models, as data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

AGGREGATIONS = ("min", "prod", "mean", "last")


@dataclass(frozen=True)
class RewardSpec:
    """How a reward model reads a problem and its steps.

    name: of the format. auto_class: transformers class that loads it. prompt, step: templates of
    the text before the steps, holding ``{problem}``, and of a step, holding ``{step}``.
    begin_of_text: whether the tokenizer's begin token, if it has one, comes first. step_end: text
    closing a step, tokenized by itself; the score is read at its last token. good_label: the label
    whose probability is the score. aggregation: how a solution's step scores become one by default.
    """

    name: str
    auto_class: str
    prompt: str
    begin_of_text: bool
    step: str
    step_end: str
    good_label: int
    aggregation: str

    @classmethod
    def load(cls, name: str | Path) -> RewardSpec:
        """A spec that ships with the package, by name, or a JSON file by path.

        Raises ValueError for an unknown name or a file that is no spec.

        >>> RewardSpec.load("token_classification").step_end
        '\\n'
        """
        shipped = {path.stem: path for path in Path(__file__).parent.glob("*.json")}
        path = shipped.get(str(name), Path(name))
        if not path.is_file():
            raise ValueError(
                f"reward spec: expected a JSON file or one of {sorted(shipped)}, got {str(name)!r}"
            )
        try:
            spec = cls(**json.loads(path.read_text()))
        except (TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"reward spec {path}: {error}") from error
        if spec.aggregation not in AGGREGATIONS:
            raise ValueError(
                f"reward spec {path}: aggregation must be one of {AGGREGATIONS}, "
                f"got {spec.aggregation!r}"
            )
        return spec

    def prompt_tokens(self, tokenizer, problem: str) -> list[int]:
        """Token ids of everything before the first step."""
        ids = tokenizer(self.prompt.replace("{problem}", problem), add_special_tokens=False)
        begin = tokenizer.bos_token_id
        first = [begin] if self.begin_of_text and begin is not None else []
        return first + ids["input_ids"]

    def step_tokens(self, tokenizer, step: str) -> list[int]:
        """Token ids of one step and its closing text; the step's own white space is dropped."""
        body = self.step.replace("{step}", step.strip())
        return (
            tokenizer(body, add_special_tokens=False)["input_ids"]
            + tokenizer(self.step_end, add_special_tokens=False)["input_ids"]
        )


def aggregate(scores: list[float], how: str) -> float:
    """One score of a solution from its steps' scores; NaN without any.

    how: ``min``, ``prod``, ``mean`` or ``last``. Raises ValueError for another name.

    >>> aggregate([0.5, 0.8], "prod")
    0.4
    """
    if how not in AGGREGATIONS:
        raise ValueError(f"aggregate: how must be one of {AGGREGATIONS}, got {how!r}")
    if not scores or any(s != s for s in scores):
        return float("nan")
    if how == "min":
        return min(scores)
    if how == "last":
        return scores[-1]
    if how == "mean":
        return sum(scores) / len(scores)
    product = 1.0
    for score in scores:
        product *= score
    return product
