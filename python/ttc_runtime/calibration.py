"""Calibration: which strategy to use, measured on problems with known answers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ttc_runtime.sampling import SamplingParams
from ttc_runtime.search import Search
from ttc_runtime.strategies.base import Outcome, Strategy, Work
from ttc_runtime.strategies.difficulty import estimate_difficulty

if TYPE_CHECKING:
    from ttc_runtime.engine import Engine


@dataclass(frozen=True)
class Look:
    """Strategy that only estimates a problem's difficulty; see `estimate_difficulty`."""

    samples: int = 4
    estimate: str = "reward"
    sampling: SamplingParams = SamplingParams()
    name: ClassVar[str] = "look"

    def run(self, search: Search) -> Work:
        difficulty, branches = yield from estimate_difficulty(
            search, self.samples, self.sampling, self.estimate
        )
        return Outcome(branches, info={"difficulty": difficulty})


@dataclass(frozen=True)
class Trial:
    """What each strategy made of one problem.

    difficulty: estimated, in [0, 1]. look: tokens generated to estimate it. correct, tokens: by
    strategy: whether its answer was right, and tokens generated.
    """

    difficulty: float
    look: int
    correct: dict[str, bool]
    tokens: dict[str, int]


@dataclass
class Calibration:
    """A table of trials, from which a strategy is chosen by difficulty.

    strategies: name and settings of each, by a label. samples, estimate: how difficulty was told.
    bounds: difficulties between the bins.

    >>> easy = Trial(0.1, 9, {"few": True, "many": True}, {"few": 10, "many": 90})
    >>> hard = Trial(0.8, 9, {"few": False, "many": True}, {"few": 10, "many": 90})
    >>> table = Calibration({}, 4, "reward", [0.5], [easy, hard])
    >>> table.choose(0.2), table.choose(0.7)
    ('few', 'many')
    """

    strategies: dict[str, dict]
    samples: int
    estimate: str
    bounds: list[float]
    trials: list[Trial] = field(default_factory=list)

    def bin_of(self, difficulty: float) -> int:
        return sum(difficulty >= bound for bound in self.bounds)

    def choose(
        self,
        difficulty: float,
        tokens: float | None = None,
        tolerance: float = 0.0,
        trials: list[Trial] | None = None,
    ) -> str:
        """The label of the strategy that was best on problems of about this difficulty.

        tokens: mean tokens it may take, if any can do with so few. tolerance: accuracy that may be
        given up for fewer tokens. trials: to choose by, by default all. Among equally good ones the
        cheapest. Raises ValueError without trials.
        """
        known = self.trials if trials is None else trials
        near = [t for t in known if self.bin_of(t.difficulty) == self.bin_of(difficulty)] or known
        if not near:
            raise ValueError("Calibration: there are no trials to choose by")
        accuracy = {k: sum(t.correct[k] for t in near) / len(near) for k in near[0].correct}
        cost = {k: sum(t.tokens[k] for t in near) / len(near) for k in accuracy}
        cheap = [k for k in accuracy if tokens is None or cost[k] <= tokens]
        if not cheap:
            return min(cost, key=lambda k: cost[k])
        best = max(accuracy[k] for k in cheap)
        return min((k for k in cheap if accuracy[k] >= best - tolerance), key=lambda k: cost[k])

    def cross_validate(
        self, folds: int = 2, tokens: float | None = None, tolerance: float = 0.0
    ) -> tuple[float, float]:
        """Accuracy, and mean tokens with those of the estimate, of choosing by the other folds.

        folds: parts, of which each is held out in turn. Raises ValueError for fewer than 2, or than
        there are trials.
        """
        if not 2 <= folds <= len(self.trials):
            raise ValueError(
                f"Calibration: folds must be 2 to {len(self.trials)} trials, got {folds!r}"
            )
        right = spent = 0
        for i, trial in enumerate(self.trials):
            others = [t for j, t in enumerate(self.trials) if j % folds != i % folds]
            label = self.choose(trial.difficulty, tokens, tolerance, others)
            right += trial.correct[label]
            spent += trial.look + trial.tokens[label]
        return right / len(self.trials), spent / len(self.trials)

    def strategy(self, label: str) -> Strategy:
        """The strategy of a label."""
        from ttc_runtime.strategies import make_strategy

        recipe = dict(self.strategies[label])
        sampling = SamplingParams(**recipe.pop("sampling", {}))
        return make_strategy(recipe.pop("name"), sampling=sampling, **recipe)

    def save(self, path: str | Path) -> None:
        """Write the table as JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read a table that `save` wrote. Raises ValueError for a file that is none."""
        try:
            record = json.loads(Path(path).read_text())
            trials = [Trial(**trial) for trial in record.pop("trials")]
            return cls(**record, trials=trials)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"calibration table {str(path)!r}: {error}") from error


def calibrate(
    engine: Engine,
    problems: Iterable[dict],
    strategies: dict[str, Strategy],
    *,
    bins: int = 3,
    samples: int = 4,
    estimate: str = "reward",
    sampling: SamplingParams | None = None,
    seed: int = 0,
) -> Calibration:
    """Run strategies on problems with known answers and tabulate what came out, by difficulty.

    problems: dicts with ``problem`` and ``answer``. strategies: by labels of your choice. bins: of
    difficulty, with about equally many problems in each. samples, estimate, sampling: of the
    estimate. seed: of all randomness. Snell et al., "Scaling LLM Test-Time Compute Optimally can be
    More Effective than Scaling Model Parameters", 2024. Raises ValueError for problems without
    answers, or none.

    >>> calibrate(engine, problems, {"greedy": Greedy(), "beam": BeamSearch()})   # doctest: +SKIP
    """
    records = list(problems)
    if not records or any(record.get("answer") is None for record in records):
        raise ValueError("calibrate: problems must each have an 'answer', and there must be some")
    if bins < 1 or not strategies:
        raise ValueError(f"calibrate: bins must be >= 1 and strategies given, got {bins!r}")
    looks = engine.solve_all(
        records, Look(samples, estimate, sampling or SamplingParams()), seed=seed
    )
    results = {k: engine.solve_all(records, s, seed=seed) for k, s in strategies.items()}
    trials = []
    for i, look in enumerate(looks):
        if look.error is None:
            correct = {k: bool(rs[i].correct) for k, rs in results.items()}
            tokens = {k: rs[i].usage.generated for k, rs in results.items()}
            trials.append(Trial(look.info["difficulty"], look.usage.generated, correct, tokens))
    ranked = sorted(trial.difficulty for trial in trials)
    bounds = sorted({ranked[len(ranked) * b // bins] for b in range(1, bins)})
    recipes = {label: recipe(strategy) for label, strategy in strategies.items()}
    return Calibration(recipes, samples, estimate, bounds, trials)


def recipe(strategy: Strategy) -> dict:
    """A strategy as its name, those settings that are numbers or words, and its sampling."""
    settings = {f.name: getattr(strategy, f.name) for f in fields(strategy)}  # type: ignore[arg-type]
    plain = (int, float, str, type(None))
    found = {k: v for k, v in settings.items() if isinstance(v, plain)}
    return {"name": strategy.name, **found, "sampling": asdict(strategy.sampling)}
