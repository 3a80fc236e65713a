"""Tables of results for the command line."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rich.table import Table

from ttc_runtime.budget import Usage
from ttc_runtime.calibration import Calibration
from ttc_runtime.result import Result


def wilson(right: int, total: int) -> tuple[float, float]:
    """95 % confidence interval of a proportion. Wilson, "Probable Inference", 1927.

    >>> low, high = wilson(5, 10)
    >>> round(low, 2), round(high, 2)
    (0.24, 0.76)
    """
    if total == 0:
        return 0.0, 1.0
    z, p = 1.96, right / total
    middle = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(p * (1 - p) / total + z * z / (4 * total**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def accuracy(results: Iterable[Result]) -> str:
    """Share of correct answers with its interval, among problems whose answer is known."""
    known = [result.correct for result in results if result.correct is not None]
    if not known:
        return "-"
    low, high = wilson(sum(known), len(known))
    return f"{100 * sum(known) / len(known):.1f} % [{100 * low:.0f}, {100 * high:.0f}]"


def total_usage(results: Iterable[Result]) -> Usage:
    """Sum of what the results cost."""
    return sum((result.usage for result in results), Usage())


def summary(results: list[Result], seconds: float, title: str) -> Table:
    """One run as a table of names and figures."""
    usage = total_usage(results)
    failed = sum(result.error is not None for result in results)
    cut = sum(result.stop_reason == "budget" for result in results)
    rows = {
        "problems": f"{len(results)}" + (f" ({failed} failed)" if failed else ""),
        "accuracy [95 %]": accuracy(results),
        "stopped by the budget": str(cut),
        **usage_rows(usage, seconds),
    }
    table = Table(title=title, show_header=False)
    for name, figure in rows.items():
        table.add_row(name, figure)
    return table


def usage_rows(usage: Usage, seconds: float) -> dict[str, str]:
    """Names and figures of what was spent in so many seconds of wall clock."""
    speculation = {}
    if usage.verifications:
        speculation = {
            "tokens a verification": f"{usage.acceptance_length:.2f}",
            "passes saved": f"{usage.passes_saved:,}",
        }
    return {
        "tokens generated": f"{usage.generated:,}",
        "tokens scored": f"{usage.scored:,}",
        "tokens reused": f"{usage.reused:,}",
        "tokens recomputed": f"{usage.recomputed:,}",
        "peak unique KV tokens": f"{usage.peak_kv_tokens:,}",
        **speculation,
        "tokens per second": f"{usage.generated / max(seconds, 1e-9):,.0f}",
        "seconds": f"{seconds:.1f}",
    }


def calibration_table(table: Calibration, title: str) -> Table:
    """What every strategy makes of each bin of difficulty, and what choosing among them makes.

    table: as calibrated. title: above it. The last column is cross-validated, each half's choices
    being those of the other half's trials.
    """
    caption = (
        "accuracy % / tokens a problem; chosen: by difficulty for at most as many tokens, each "
        "half of the problems by the other"
    )
    shown = Table(title=title, caption=caption)
    places = [table.bin_of(trial.difficulty) for trial in table.trials]
    heads = [f"bin {b + 1} ({places.count(b)})" for b in range(len(table.bounds) + 1)]
    for head in ("strategy", *heads, "all", "chosen"):
        shown.add_column(head, justify="left" if head == "strategy" else "right")
    for label in table.strategies:
        cells = []
        for b in [*range(len(heads)), None]:
            here = [t for t, place in zip(table.trials, places, strict=True) if b in (None, place)]
            right = sum(t.correct[label] for t in here) / max(1, len(here))
            tokens = sum(t.tokens[label] for t in here) / max(1, len(here))
            cells.append(f"{100 * right:.1f} / {tokens:.0f}")
        if len(table.trials) > 1:
            right, spent = table.cross_validate(2, tokens)
            cells.append(f"{100 * right:.1f} / {spent:.0f}")
        shown.add_row(label, *cells)
    return shown
