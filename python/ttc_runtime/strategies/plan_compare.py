"""Plan and compare: several plans, a refined one, a solution; the best of several such."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import ClassVar

from ttc_runtime.branch import Branch
from ttc_runtime.sampling import SamplingParams
from ttc_runtime.search import Generate, Search, Together
from ttc_runtime.strategies.base import Outcome, Work, check_choice, check_count, fill
from ttc_runtime.strategies.values import RewardValue

PLAN = "{problem}\n\nWrite a short step-by-step plan for this problem, without solving it.\n"
SOLVE = "{problem}\n\nFollow this plan:\n{plan}\n\nWrite out the solution.\n"
REFINE = (
    "{problem}\n\nThese solutions were tried:\n{solutions}\n\nWhere do they disagree, and which "
    "steps are right? Write a corrected plan.\n"
)
FINAL = "{problem}\n\nFollow this corrected plan:\n{plan}\n\nGive the final solution.\n"
RATE = "{problem}\n\n{solution}\n\nRate this solution from 0 to 10. Answer with the number.\n"

_RATING = re.compile(r"\d+(?:\.\d+)?")


@dataclass(frozen=True)
class PlanCompare:
    """`n` candidates, each solved by a plan that was corrected after trying several; the best wins.

    A candidate: `plans` plans are drawn (temperature 0.55), each is followed (0.25), a corrected
    plan is written in view of the solutions (0.1), and followed (0). n: candidates. plans: of each.
    compare: ``reward``, by the reward model; ``rating``, by the policy's own rating from 0 to 10;
    ``auto``, by the reward model if there is one. plan, solve, refine, final, rate: the prompts.
    sampling: for its limits. The reduction of CePO (Cerebras, in optillm), whose temperatures and
    3 candidates of 3 plans these are; it tries up to 6 plans where some cannot be read. A rating
    that cannot be read does not count. Raises ValueError for other settings.

    >>> PlanCompare().plans
    3
    """

    n: int = 3
    plans: int = 3
    compare: str = "auto"
    plan: str = PLAN
    solve: str = SOLVE
    refine: str = REFINE
    final: str = FINAL
    rate: str = RATE
    sampling: SamplingParams = SamplingParams()
    name: ClassVar[str] = "plan_compare"

    def __post_init__(self) -> None:
        check_count("PlanCompare", "n", self.n)
        check_count("PlanCompare", "plans", self.plans)
        check_choice("PlanCompare", "compare", self.compare, ("auto", "reward", "rating"))

    def run(self, search: Search) -> Work:
        finals = yield Together([self._candidate(search) for _ in range(self.n)])
        if self.compare == "reward" or (self.compare == "auto" and search.scored):
            yield from RewardValue()(search, finals, self.sampling)
            return Outcome(finals, "naive")
        ratings = yield from self._rate(search, finals)
        return Outcome(finals, "naive", {"ratings": ratings}, [r / 10 for r in ratings])

    def _ask(self, search: Search, prompts: list[str], temperature: float):
        """One answer to each prompt."""
        branches = [search.root.ask(prompt).fork(1)[0] for prompt in prompts]
        yield Generate(branches, replace(self.sampling, temperature=temperature))
        return branches

    def _candidate(self, search: Search):
        problem = search.problem
        asked = search.root.ask(fill(self.plan, problem=problem))
        plans = yield Generate(asked.fork(self.plans), replace(self.sampling, temperature=0.55))
        prompts = [fill(self.solve, problem=problem, plan=plan.text.strip()) for plan in plans]
        tried = yield from self._ask(search, prompts, 0.25)
        solutions = "\n\n".join(branch.text.strip() for branch in tried)
        prompt = fill(self.refine, problem=problem, solutions=solutions)
        [refined] = yield from self._ask(search, [prompt], 0.1)
        prompt = fill(self.final, problem=problem, plan=refined.text.strip())
        [final] = yield from self._ask(search, [prompt], 0.0)
        return final

    def _rate(self, search: Search, finals: list[Branch]):
        prompts = [
            fill(self.rate, problem=search.problem, solution=branch.text.strip())
            for branch in finals
        ]
        rated = yield from self._ask(search, prompts, 0.0)
        found = [_RATING.search(branch.text) for branch in rated]
        return [min(10.0, float(match[0])) if match else float("nan") for match in found]
