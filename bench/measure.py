"""Check and time all contenders on one workload."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch

from . import machine
from .devices import Clock, synchronize
from .forest import Forest
from .peers import PEERS, Ours, Problem, Run, Skip, make_problem
from .roofline import Gauge, Roofline
from .timing import Timing, in_turn

# Largest difference that a contender may have from the definition, on normal inputs.
_TOLERANCE = {torch.bfloat16: 3e-2, torch.float16: 5e-3, torch.float32: 1e-4}
# Of the free memory, for one workload's K and V in all their layouts.
_MEMORY_SHARE = 0.7


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        device: where.
        dtype: of q, k and v.
        head_dim: elements per head.
        page_size: tokens in a page.
        rounds: timed calls of each contender and mode.
        peers: names from `PEERS`.
        peer_gib: most a peer's own layout may take.
        deterministic: plan with fixed cuts.
        backend: of `tree_attention`.
    """

    device: torch.device
    dtype: torch.dtype
    head_dim: int = 128
    page_size: int = 16
    rounds: int = 7
    peers: tuple[str, ...] = ()
    peer_gib: float = 4.0
    deterministic: bool = False
    backend: str = "auto"


@dataclass
class PeerResult:
    """One peer on one workload: why it was skipped, or its error, times and ratio to ours.

    `ratio` is the median over rounds of its time over ours in the same one. It and `seconds` are of
    the first mode that could be timed; `modes` holds all of them.
    """

    skipped: str | None = None
    wrong: str | None = None
    max_abs_error: float | None = None
    seconds: Timing | None = None
    ratio: float | None = None
    plan_s: float | None = None
    modes: dict[str, Timing] = field(default_factory=dict)


@dataclass
class TreeResult:
    """All figures of one workload. Seconds throughout; `skipped` says why there are none.

    `bytes_ratio` is the K and V that the plan reads over the unique K and V of the forest. `limit`
    is what the machine could do meanwhile, and `floor_s` and `model_s` follow from it.
    """

    index: int
    suite: str
    tree: str
    heads: tuple[int, int]
    dtype: str
    unique_tokens: int
    path_tokens: int
    limit: Roofline | None = None
    floor_s: float | None = None
    skipped: str | None = None
    wrong: str | None = None
    max_abs_error: float | None = None
    ours: Timing | None = None
    modes: dict[str, Timing] = field(default_factory=dict)
    plan_s: float | None = None
    model_s: float | None = None
    bytes_ratio: float | None = None
    roofline_fraction: float | None = None
    plan_stats: dict[str, object] = field(default_factory=dict)
    peers: dict[str, PeerResult] = field(default_factory=dict)

    @property
    def has_wrong(self) -> bool:
        """Whether a contender disagreed with the definition."""
        return self.wrong is not None or any(p.wrong for p in self.peers.values())


def measure(
    result: TreeResult, forest: Forest, settings: Settings, gauge: Gauge, clock: Clock
) -> None:
    """Check and time all contenders on one workload, and fill in its result.

    A contender that disagrees with the definition is marked wrong and not timed.
    """
    itemsize = settings.dtype.itemsize
    unique_bytes = 2 * forest.unique_tokens * result.heads[1] * settings.head_dim * itemsize
    # Twice: the unique tokens, which some peers read as they are, and our pages.
    own_bytes = 2 * unique_bytes
    free_bytes = int(_MEMORY_SHARE * machine.available_bytes(settings.device)) - own_bytes
    if free_bytes < 0:
        result.skipped = f"needs {own_bytes / 2**30:.0f} GiB"
        return
    peer_bytes = min(int(settings.peer_gib * 2**30), free_bytes // max(1, len(settings.peers)))
    problem = make_problem(
        forest,
        result.heads,
        settings.head_dim,
        settings.dtype,
        peer_bytes,
        settings.device,
        settings.page_size,
    )
    ours = Ours(problem, settings.deterministic, settings.backend)
    result.max_abs_error, result.wrong = check(ours, problem)
    result.plan_s, result.plan_stats = ours.plan_seconds(), ours.stats
    result.bytes_ratio = ours.stats["kv_bytes"] / unique_bytes
    contenders: dict[str, Run] = {} if result.wrong else {"ours": ours}
    for name in settings.peers:
        peer = result.peers[name] = PeerResult()
        try:
            run = PEERS[settings.device.type][name](problem)
            peer.max_abs_error, peer.wrong = check(run, problem)
        except Exception as error:
            # On a GPU other people's kernels fail in ways of their own, and the rest must go on.
            if not isinstance(error, Skip) and settings.device.type == "cpu":
                raise
            kind = "" if isinstance(error, Skip) else f"{type(error).__name__}: "
            peer.skipped = (kind + str(error)).splitlines()[0][:200]
            continue
        if peer.wrong is None:
            peer.plan_s = _plan_seconds(run, settings.device)
            contenders[name] = run
    for mode in clock.modes:
        runs = {**contenders, **gauge.contenders()}
        timings = in_turn(runs, settings.rounds, clock=clock, mode=mode)
        for name in contenders.keys() & timings.keys():
            modes = result.modes if name == "ours" else result.peers[name].modes
            modes[mode] = timings[name]
        result.limit = result.limit or gauge.roofline(timings)
    result.ours = next(iter(result.modes.values()), None)
    for peer in result.peers.values():
        # Like with like: in the first mode that both could be timed in.
        shared = [mode for mode in peer.modes if mode in result.modes]
        if shared:
            peer.seconds = peer.modes[shared[0]]
            peer.ratio = peer.seconds.over(result.modes[shared[0]])
    assert result.limit is not None  # every clock has a mode
    shape = result.heads, settings.head_dim
    result.floor_s = result.limit.floor_s(forest, *shape, itemsize)
    result.model_s = result.limit.model_s(ours.stats, *shape, 2 if ours.stats["partials"] else 1)
    if result.ours:
        result.roofline_fraction = result.floor_s / result.ours.median


def check(run: Run, problem: Problem) -> tuple[float, str | None]:
    """Largest difference from the definition on some queries, and what is wrong with it if so."""
    queries, expected = problem.definition()
    error = (run()[queries].double() - expected).abs().max().item()
    tolerance = _TOLERANCE[problem.q.dtype]
    # Written so that a NaN fails too.
    if not error <= tolerance:
        return error, f"must be within {tolerance} of the definition, is {error:.2g} away"
    return error, None


def _plan_seconds(run: Run, device: torch.device, repeats: int = 5) -> float | None:
    """Median seconds of a peer's own planning, None if it has none."""
    plan = getattr(run, "plan", None)
    if plan is None:
        return None
    times = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        plan()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return sorted(times)[repeats // 2]
