"""What solving a problem gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from ttc_runtime.answers import equivalent
from ttc_runtime.branch import Branch
from ttc_runtime.budget import Usage
from ttc_runtime.rewards.spec import aggregate
from ttc_runtime.scheduler import Task
from ttc_runtime.strategies import Strategy, vote
from ttc_runtime.tree import tree_nodes

_BY_NEIGHBOURS = ("reused", "peak_kv_tokens", "peak_reward_kv_tokens")
"""Usage that is no part of a record: what else ran, and when, decides it."""


@dataclass
class Result:
    """One solved problem.

    index: place among the problems. id, problem, answer_key: as given; answer_key is None where
    the right answer is not known. answer, text: the chosen answer, None if no completion states
    one, and the completion it is from. correct: whether it equals answer_key, None without one.
    branches: the candidate completions. answers: what each states, or None. scores: their
    aggregated scores, NaN where not scored. chosen: place of the completion the answer is from.
    pred_majority, pred_weighted, pred_naive: the answers by count, by summed score and by best
    score. tree: the root branch. usage: what it cost. stop_reason: ``finished``, ``budget`` or
    ``error``. seed, strategy: as run. error: why the problem failed, else None. exception:
    what the strategy raised, if that was why. info: the strategy's own notes.
    """

    index: int
    id: object
    problem: str
    answer_key: str | None
    strategy: str
    seed: int
    answer: str | None = None
    text: str = ""
    correct: bool | None = None
    branches: list[Branch] = field(default_factory=list)
    answers: list[str | None] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    chosen: int | None = None
    pred_majority: str | None = None
    pred_weighted: str | None = None
    pred_naive: str | None = None
    tree: Branch | None = None
    usage: Usage = field(default_factory=Usage)
    stop_reason: str = "error"
    error: str | None = None
    exception: Exception | None = None
    info: dict = field(default_factory=dict)

    def record(self) -> dict:
        r"""The result as one JSON object of a results file; scores that are NaN become null.

        Columns are named as in search-and-learn, whose ``pred_maj@n`` and the like are the votes of
        the first n completions, n a power of two, in ``\boxed{}``. Wall-clock seconds and, where
        memory ran out, recomputed tokens aside, it does not depend on what ran beside or before.
        """
        usage = {k: v for k, v in asdict(self.usage).items() if k not in _BY_NEIGHBOURS}
        return {
            "id": self.id,
            "problem": self.problem,
            "answer": self.answer_key,
            "pred": self.answer,
            "correct": self.correct,
            "completions": [branch.text for branch in self.branches],
            "scores": [[_number(s) for s in b.step_scores] for b in self.branches],
            "agg_scores": [_number(s) for s in self.scores],
            "completion_tokens": [len(branch.tokens) for branch in self.branches],
            "pred_maj": self.pred_majority,
            "pred_weighted": self.pred_weighted,
            "pred_naive": self.pred_naive,
            **self._subsets(),
            "usage": usage,
            "stop_reason": self.stop_reason,
            "seed": self.seed,
            "strategy": self.strategy,
            "tree": self._tree(),
            **({"info": self.info} if self.info else {}),
            **({"error": self.error} if self.error is not None else {}),
        }

    def _subsets(self) -> dict[str, str]:
        columns, n = {}, 1
        while n <= len(self.answers):
            votes = vote(self.answers[:n], self.scores[:n])
            places = {"maj": votes.majority, "weighted": votes.weighted, "naive": votes.naive}
            for name, place in places.items():
                answer = None if place is None else self.answers[place]
                columns[f"pred_{name}@{n}"] = f"\\boxed{{{'' if answer is None else answer}}}"
            n *= 2
        return columns

    def _tree(self) -> dict | None:
        if self.tree is None:
            return None
        nodes, places = tree_nodes(self.tree)
        ends = [places.get(id(branch)) for branch in self.branches]
        chosen = None if self.chosen is None else ends[self.chosen]
        return {"nodes": nodes, "completions": ends, "chosen": chosen}


def _number(score: float) -> float | None:
    return score if score == score else None


def make_result(
    task: Task,
    record: dict,
    strategy: Strategy,
    seed: int,
    extract: Callable[[str], str | None],
    aggregation: str,
) -> Result:
    """The result of a finished task."""
    key = record.get("answer")
    result = Result(
        task.index,
        record["id"],
        record["problem"],
        None if key is None else str(key),
        strategy.name,
        seed,
        error=task.error,
        exception=task.exception,
    )
    if task.search is not None:
        result.tree, result.usage = task.search.root, task.search.usage
    outcome = task.outcome
    if task.search is None or outcome is None:
        result.correct = None if key is None else False
        return result
    result.branches, result.info = outcome.branches, outcome.info
    texts = [branch.text for branch in outcome.branches]
    answers = [extract(text) for text in texts]
    result.scores = outcome.scores or [
        aggregate(branch.step_scores, aggregation) for branch in outcome.branches
    ]
    votes = vote(answers, result.scores)
    places = {"majority": votes.majority, "weighted": votes.weighted, "naive": votes.naive}
    predictions = {name: None if i is None else answers[i] for name, i in places.items()}
    result.pred_majority = predictions["majority"]
    result.pred_weighted, result.pred_naive = predictions["weighted"], predictions["naive"]
    result.answers, result.chosen = answers, places[outcome.select]
    result.answer = predictions[outcome.select]
    result.text = "" if result.chosen is None else texts[result.chosen]
    result.correct = None if key is None else equivalent(result.answer, result.answer_key)
    result.stop_reason = "budget" if task.search.budget_hit else "finished"
    return result
