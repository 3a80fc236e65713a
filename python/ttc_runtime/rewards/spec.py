"""Formats of reward models, as data: one JSON file each beside this one."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

AGGREGATIONS = ("min", "prod", "mean", "last")
HEADS = {"two_logit": 4, "value": 2, "raw": 2, "softmax": 2, "token_pair": 0}
"""Kinds of heads, and how many tensors of the checkpoint each names in ``weights``."""


@dataclass(frozen=True)
class RewardSpec:
    """How a reward model reads a problem and its steps.

    name, source: of the format, and what it is taken from. aggregation: how a solution's step
    scores become one by default.

    The text: prompt comes before the steps and holds ``{problem}``; or messages, put through the
    tokenizer's chat template, in which the steps are the assistant's turn or stand at ``{steps}``.
    begin_of_text: whether the tokenizer's begin token, if it has one, comes before a prompt. step,
    first_step: a step, holding ``{step}`` and perhaps ``{number}``; step_end: what closes it. tag:
    the one token that step_end ends with, where that is a sign of its own. answer: makes a dialogue
    of it: each step is a user's turn and answered so; it is scored where its answer would stand.
    tokenize: ``text``, one running text cut at special tokens, or ``pieces``, prompt, step and
    step_end by themselves. strip: drop a step's outer white space. newlines: what newlines inside a
    step become.

    The score: head: its ``kind`` (see `ttc_kernels.StepHead`) and the names of its ``weights`` in
    the checkpoint, or the tokens ``good`` and ``bad`` for a pair of rows of the LM head. It is read
    at the step's last token; with probe, at the last token of that text, appended on a scratch
    branch: ``{eos}`` is the end of text, ``{close}`` what the chat template puts behind the steps.
    verdict: the model writes on the scratch branch until ``behind``, for up to ``max_tokens``, and
    the pair of tokens is compared for what comes next.

    match: regular expressions for ``architectures`` in the model's config and for its ``name``, by
    which a directory is recognised.
    """

    name: str
    step: str = "{step}"
    head: dict = field(default_factory=dict)
    aggregation: str = "min"
    source: str = ""
    match: dict = field(default_factory=dict)
    prompt: str | None = None
    messages: list | None = None
    begin_of_text: bool = False
    first_step: str | None = None
    step_end: str = ""
    tag: str | None = None
    answer: str | None = None
    tokenize: str = "text"
    strip: bool = True
    newlines: str | None = None
    probe: str | None = None
    verdict: dict | None = None

    @classmethod
    def load(cls, name: str | Path) -> RewardSpec:
        """A spec that ships with the package, by name, or a JSON file by path.

        Raises ValueError for an unknown name or a file that is no spec.

        >>> RewardSpec.load("token_classification").step_end
        '\\n'
        """
        shipped = _shipped()
        path = shipped.get(str(name), Path(name))
        if not path.is_file():
            raise ValueError(
                f"reward spec: expected a JSON file or one of {sorted(shipped)}, got {str(name)!r}"
            )
        try:
            spec = cls(**json.loads(path.read_text()))
        except (TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"reward spec {path}: {error}") from error
        spec._check(path)
        return spec

    @classmethod
    def recognise(cls, name: str, architectures: list[str]) -> RewardSpec:
        """The spec of a model from its directory's name and the architectures in its config.

        A format that asks for a name goes before one that does not. Raises ValueError, with the
        formats known, if none fits.

        >>> RewardSpec.recognise("Qwen2.5-Math-PRM-7B", ["Qwen2ForProcessRewardModel"]).name
        'qwen2.5-math-prm'
        """
        specs = [cls.load(name) for name in sorted(_shipped())]
        for spec in sorted(specs, key=lambda s: "name" not in s.match):
            wanted = spec.match.get("architectures")
            named = re.search(spec.match.get("name", ""), name, re.IGNORECASE)
            kind = wanted is None or any(re.search(wanted, a) for a in architectures)
            if spec.match and named and kind:
                return spec
        known = "; ".join(f"{s.name}: {s.match or 'only by name'}" for s in specs)
        raise ValueError(
            f"reward model: found architectures {architectures} in a directory {name!r}, which no "
            f"known format has; pass its name as `spec`. Known: {known}"
        )

    def _check(self, path: Path) -> None:
        kind = str(self.head.get("kind"))
        for ok, message in (
            (
                self.aggregation in AGGREGATIONS,
                f"aggregation must be one of {AGGREGATIONS}, got {self.aggregation!r}",
            ),
            (kind in HEADS, f"head kind must be one of {tuple(HEADS)}, got {kind!r}"),
            (
                kind == "token_pair" or len(self.head.get("weights", ())) == HEADS.get(kind),
                f"a {kind} head must name {HEADS.get(kind)} weights, got {self.head}",
            ),
            (
                kind != "token_pair" or {"good", "bad"} <= set(self.head),
                f"a token_pair head must name its good and bad token, got {self.head}",
            ),
            (
                "{step}" in self.step and "{step}" in (self.first_step or self.step),
                "step and first_step must hold {step}",
            ),
            (self.prompt is not None or self.messages is not None, "needs prompt or messages"),
            (
                self.tokenize in ("text", "pieces"),
                f"tokenize must be 'text' or 'pieces', got {self.tokenize!r}",
            ),
            (self.verdict is None or self.probe is not None, "a verdict needs a probe"),
        ):
            if not ok:
                raise ValueError(f"reward spec {path}: {message}")


def _shipped() -> dict[str, Path]:
    return {path.stem: path for path in Path(__file__).parent.glob("*.json")}


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
