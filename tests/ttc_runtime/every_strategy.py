"""One small configuration of every strategy, for tests that all of them have to pass."""

from __future__ import annotations

from ttc_runtime import SamplingParams
from ttc_runtime.calibration import Calibration, Trial
from ttc_runtime.strategies import (
    DVTS,
    MCTS,
    Adaptive,
    BeamSearch,
    BestOfN,
    BudgetForcing,
    CertaintyProbes,
    Collective,
    ComputeOptimal,
    Decomposition,
    EarlyTermination,
    Greedy,
    ParticleFilter,
    PlanCompare,
    Rebase,
    Retrieval,
    SelfConsistency,
    SpeculativeRejection,
    StepSpeculation,
    ThoughtSwitching,
)

SHORT = SamplingParams(max_tokens=48)


def upper(query):
    return query.upper()


SMALL = {
    "greedy": Greedy(SHORT),
    "self_consistency": SelfConsistency(4, SHORT),
    "best_of_n": BestOfN(4, sampling=SHORT),
    "beam": BeamSearch(4, 2, lookahead=1, step_tokens=9, sampling=SHORT),
    "dvts": DVTS(4, 2, step_tokens=9, sampling=SHORT),
    "rebase": Rebase(4, step_tokens=9, sampling=SHORT),
    "particle": ParticleFilter(4, step_tokens=9, sampling=SHORT),
    "mcts": MCTS(6, 2, value="rollout", parallel=3, step_tokens=9, sampling=SHORT),
    "collective": Collective(6, 2, parallel=3, step_tokens=9, sampling=SHORT),
    "budget_forcing": BudgetForcing(2, 8, 24, 2, 9, "go on", "=", "\n#", sampling=SHORT),
    "thought_switching": ThoughtSwitching(3, words=("a", "b+"), duration=5, sampling=SHORT),
    "speculative_rejection": SpeculativeRejection(4, segment=6, sampling=SHORT),
    "step_speculation": StepSpeculation(3, step_tokens=9, sampling=SHORT),
    "early_termination": EarlyTermination(4, 0.5, step_tokens=9, sampling=SHORT),
    "certainty": CertaintyProbes(2, 6, 2, "\n#", "\n", 4, (), sampling=SHORT),
    "adaptive": Adaptive(
        2,
        routes=(
            Greedy(SHORT),
            BestOfN(2, sampling=SHORT),
            BeamSearch(4, 2, sampling=SHORT),
            MCTS(3, sampling=SHORT),
        ),
        sampling=SHORT,
    ),
    "compute_optimal": ComputeOptimal(
        Calibration(
            {
                "few": {"name": "best_of_n", "n": 3},
                "many": {"name": "beam", "n": 4, "width": 2},
            },
            2,
            "agreement",
            None,
            [0.5],
            [
                Trial(0.2, {"few": True, "many": True}, {"few": 1, "many": 2}),
                Trial(0.7, {"few": False, "many": True}, {"few": 1, "many": 2}),
            ],
        ),
        sampling=SHORT,
    ),
    "decomposition": Decomposition(2, "{problem}", "{part}=", "{problem}", 2, sampling=SHORT),
    "plan_compare": PlanCompare(
        2, 2, "auto", "{problem}", "{plan}=", "{problem}", "{problem}", "{problem}", sampling=SHORT
    ),
    "retrieval": Retrieval(upper, 2, "a", "b", "[", "]", 2, 9.0, condense="", sampling=SHORT),
}
