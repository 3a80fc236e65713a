"""Calibration: which strategy to use, measured on problems with known answers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttc_runtime.sampling import SamplingParams

if TYPE_CHECKING:
    from ttc_runtime.engine import Engine
    from ttc_runtime.strategies import Adaptive, Strategy


@dataclass(frozen=True)
class Trial:
    """What each strategy made of one problem.

    difficulty: estimated, in [0, 1]. correct, tokens: by strategy: whether the answer was right,
    and tokens generated, those of the estimate included.
    """

    difficulty: float
    correct: dict[str, bool]
    tokens: dict[str, int]


@dataclass
class Calibration:
    """A table of trials, from which a strategy is chosen by difficulty.

    strategies: name and settings of each, by a label. samples, estimate, select: how difficulty was
    told and answers were chosen, see `Adaptive`. bounds: difficulties between the bins. trials: one
    a problem.

    >>> easy = Trial(0.1, {"few": True, "many": True}, {"few": 10, "many": 90})
    >>> hard = Trial(0.8, {"few": False, "many": True}, {"few": 10, "many": 90})
    >>> table = Calibration({}, 4, "reward", None, [0.5], [easy, hard])
    >>> table.choose(0.2), table.choose(0.7), table.choose(0.7, tokens=40)
    ('few', 'many', 'few')
    """

    strategies: dict[str, dict]
    samples: int
    estimate: str
    select: str | None
    bounds: list[float]
    trials: list[Trial] = field(default_factory=list)

    def bin_of(self, difficulty: float) -> int:
        """The bin of a difficulty; higher ones are harder."""
        return sum(difficulty >= bound for bound in self.bounds)

    def choose(self, difficulty: float, tokens: float | None = None) -> str:
        """The label of the strategy for problems of about this difficulty; see `allocate`."""
        return self.allocate(tokens)[self.bin_of(difficulty)]

    def allocate(self, tokens: float | None = None) -> list[str]:
        """For each bin the label of a strategy, so that over all trials most answers are right.

        tokens: generated a problem, at most so many in the mean over all trials, if any strategies
        can do with so few. Starting from the cheapest, a bin gets a better strategy where that
        buys most right answers a token, as long as it can be paid. An empty bin is treated as all
        problems are. Raises ValueError without trials.
        """
        if not self.trials:
            raise ValueError("Calibration: there are no trials to choose by")
        labels = list(self.trials[0].correct)
        members = [
            [t for t in self.trials if self.bin_of(t.difficulty) == b]
            for b in range(len(self.bounds) + 1)
        ]
        right = [{k: sum(t.correct[k] for t in m or self.trials) for k in labels} for m in members]
        cost = [{k: sum(t.tokens[k] for t in m or self.trials) for k in labels} for m in members]
        chosen = [
            min(labels, key=lambda k: (c[k], -r[k])) for c, r in zip(cost, right, strict=True)
        ]
        room = float("inf") if tokens is None else tokens * len(self.trials)
        room -= sum(cost[b][k] for b, k in enumerate(chosen) if members[b])
        while True:
            steps = []
            for b, k in enumerate(chosen):
                for other in labels:
                    gain, price = right[b][other] - right[b][k], cost[b][other] - cost[b][k]
                    if gain > 0 and price * bool(members[b]) <= room:
                        steps.append((gain / max(price, 1e-9), b, other, price))
            if not steps:
                return chosen
            _, b, label, price = max(steps, key=lambda step: step[0])
            chosen[b] = label
            room -= price * bool(members[b])

    def held_out(self, folds: int = 2, tokens: float | None = None) -> list[str]:
        """For each trial the label that the trials of the other folds choose for it.

        folds: parts, of which each is held out in turn. tokens: as for `allocate`. Raises
        ValueError for fewer than 2 folds, or more than there are trials.
        """
        if not 2 <= folds <= len(self.trials):
            raise ValueError(
                f"Calibration: folds must be 2 to {len(self.trials)} trials, got {folds!r}"
            )
        tables = []
        for fold in range(folds):
            others = [t for i, t in enumerate(self.trials) if i % folds != fold]
            tables.append(replace(self, trials=others).allocate(tokens))
        return [tables[i % folds][self.bin_of(t.difficulty)] for i, t in enumerate(self.trials)]

    def cross_validate(self, folds: int = 2, tokens: float | None = None) -> tuple[float, float]:
        """Accuracy and mean tokens of choosing by the other folds; see `held_out`."""
        chosen = list(zip(self.trials, self.held_out(folds, tokens), strict=True))
        right = sum(trial.correct[label] for trial, label in chosen)
        spent = sum(trial.tokens[label] for trial, label in chosen)
        return right / len(chosen), spent / len(chosen)

    def strategy(self, label: str, sampling: SamplingParams | None = None) -> Strategy:
        """The strategy of a label. sampling: how it draws tokens."""
        from ttc_runtime.strategies import make_strategy

        settings = dict(self.strategies[label])
        return make_strategy(settings.pop("name"), sampling=sampling, **settings)

    def text(self) -> str:
        """The table as JSON."""
        return json.dumps(asdict(self), indent=1)

    def save(self, path: str | Path) -> None:
        """Write the table as JSON."""
        Path(path).write_text(self.text() + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read a table that `save` wrote. Raises ValueError for a file that is none."""
        try:
            record = json.loads(Path(path).read_text())
            trials = [Trial(**trial) for trial in record.pop("trials")]
            return cls(**record, trials=trials)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"calibration table {str(path)!r}: {error}") from error


def trial_of(
    strategy: Strategy,
    samples: int = 4,
    estimate: str = "reward",
    select: str | None = None,
    sampling: SamplingParams | None = None,
) -> Adaptive:
    """The strategy as `ComputeOptimal` would run it once it has chosen it: after the estimate.

    strategy: its sampling is replaced. samples, estimate, select, sampling: as for `Adaptive`.

    >>> from ttc_runtime.strategies import BestOfN
    >>> trial_of(BestOfN(8), samples=2).routes[0].n
    8
    """
    from ttc_runtime.strategies import Adaptive

    sampling = sampling or SamplingParams()
    route = replace(strategy, sampling=sampling)  # type: ignore[type-var]
    return Adaptive(samples, estimate, (), (route,), select, sampling)


def tabulate(records: dict[str, list[dict]], trials: dict[str, Adaptive], bins: int) -> Calibration:
    """A table of what runs of `trial_of` strategies left in their records.

    records: by label, in each list the same problems in the same order. trials: the strategies that
    were run, by label. bins: of difficulty, with about equally many problems in each. A problem
    that failed with any of them is left out. Raises ValueError for bins below 1, no strategies, or
    records without a known answer.
    """
    if bins < 1 or not trials:
        raise ValueError(f"calibrate: bins must be >= 1 and strategies given, got {bins!r}")
    found = []
    for beside in zip(*records.values(), strict=True):
        if any(record["correct"] is None for record in beside):
            raise ValueError("calibrate: problems must each have an 'answer'")
        by_label = dict(zip(records, beside, strict=True))
        if not any("error" in record for record in beside):
            correct = {k: record["correct"] for k, record in by_label.items()}
            tokens = {k: record["usage"]["generated"] for k, record in by_label.items()}
            found.append(Trial(beside[0]["info"]["difficulty"], correct, tokens))
    if not found:
        errors = [f"{k}: {r['error']}" for k, rs in records.items() for r in rs if "error" in r]
        raise ValueError(
            f"calibrate: no problem was solved by every strategy; {'; '.join(errors[:1])}"
        )
    ranked = sorted(trial.difficulty for trial in found)
    bounds = sorted({ranked[len(ranked) * b // bins] for b in range(1, bins)})
    recipes = {label: recipe(trial.routes[0]) for label, trial in trials.items()}
    first = next(iter(trials.values()))
    return Calibration(recipes, first.samples, first.estimate, first.select, bounds, found)


def calibrate(
    engine: Engine,
    problems: Iterable[dict],
    strategies: dict[str, Strategy],
    *,
    bins: int = 3,
    samples: int = 4,
    estimate: str = "reward",
    select: str | None = None,
    sampling: SamplingParams | None = None,
    seed: int = 0,
) -> Calibration:
    """Run strategies on problems with known answers and tabulate what came out, by difficulty.

    problems: dicts with ``problem`` and ``answer``. strategies: by labels of your choice. bins: of
    difficulty, with about equally many problems in each. samples, estimate, select: as for
    `Adaptive`. sampling: of the estimate and all strategies, by default their defaults. seed: of
    all randomness. Snell et al., "Scaling LLM Test-Time Compute Optimally can be More Effective
    than Scaling Model Parameters", 2024. Raises ValueError for problems without answers, or none.

    >>> calibrate(engine, problems, {"greedy": Greedy(), "beam": BeamSearch()})   # doctest: +SKIP
    """
    known = list(problems)
    if not known or any(record.get("answer") is None for record in known):
        raise ValueError("calibrate: problems must each have an 'answer', and there must be some")
    trials = {k: trial_of(s, samples, estimate, select, sampling) for k, s in strategies.items()}
    records = {
        label: [result.record() for result in engine.solve_all(known, trial, seed=seed)]
        for label, trial in trials.items()
    }
    return tabulate(records, trials, bins)


def recipe(strategy: Any) -> dict:
    """A strategy's name and those of its settings that are not the defaults, but for its sampling.

    Raises ValueError for a setting that cannot be written down, such as a value of your own.

    >>> from ttc_runtime.strategies import BeamSearch
    >>> recipe(BeamSearch(8, width=2))
    {'name': 'beam', 'n': 8, 'width': 2}
    """
    found = {"name": strategy.name}
    for setting in fields(strategy):
        value = getattr(strategy, setting.name)
        known = setting.default is not MISSING and value == setting.default
        if setting.name == "sampling" or known:
            continue
        try:
            json.dumps(value)
        except TypeError:
            raise ValueError(
                f"calibrate: {strategy.name}: {setting.name} = {value!r} cannot be put in a table"
            ) from None
        found[setting.name] = value
    return found
