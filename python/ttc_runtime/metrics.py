"""What each problem cost, for other programs: Prometheus text and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence

_HELP = {
    "prompt": ("prompt tokens", "tokens"),
    "generated": ("tokens sampled", "tokens"),
    "samples": ("completions started from the prompt", ""),
    "run": ("tokens run through the policy", "tokens"),
    "scored": ("tokens run through the reward model", "tokens"),
    "recomputed": ("tokens run again because memory ran out", "tokens"),
    "flops": ("floating point operations of both models", ""),
    "reward_flops": ("of these, the reward model's", ""),
}
_LABELS = ("strategy", "seed", "id")


def prometheus(records: list[dict]) -> str:
    r"""Text exposition format: one gauge a figure, one sample a problem.

    records: of a results file. Where a problem occurs several times under the same labels, its last
    record counts.

    >>> print(prometheus([{"strategy": "greedy", "seed": 0, "id": "a", "correct": True,
    ...                    "usage": {"generated": 7}}]), end="")
    # HELP ttc_query_generated_tokens tokens sampled
    # TYPE ttc_query_generated_tokens gauge
    ttc_query_generated_tokens{strategy="greedy",seed="0",id="a"} 7
    # HELP ttc_query_correct whether the answer is right, where it is known
    # TYPE ttc_query_correct gauge
    ttc_query_correct{strategy="greedy",seed="0",id="a"} 1
    """
    latest = list({tuple(str(r[key]) for key in _LABELS): r for r in records}.values())
    lines: list[str] = []

    def family(name: str, text: str, samples: Sequence[tuple[dict, str, object]]) -> None:
        if samples:
            lines.extend([f"# HELP {name} {text}", f"# TYPE {name} gauge"])
            lines.extend(f"{name}{{{_labels(r)}{more}}} {value}" for r, more, value in samples)

    for key, (text, unit) in _HELP.items():
        name = f"ttc_query_{key}" + (f"_{unit}" if unit and not key.endswith(unit) else "")
        family(name, text, [(r, "", r["usage"][key]) for r in latest if key in r["usage"]])
    seconds = [
        (r, f',phase="{phase}"', value)
        for r in latest
        for phase, value in r["usage"].get("seconds", {}).items()
    ]
    family("ttc_query_seconds", "seconds by phase; total is wall clock", seconds)
    known = [(r, "", int(r["correct"])) for r in latest if r.get("correct") is not None]
    family("ttc_query_correct", "whether the answer is right, where it is known", known)
    failed = [(r, "", 1) for r in latest if "error" in r]
    family("ttc_query_failed", "problems that failed", failed)
    return "".join(line + "\n" for line in lines)


def _labels(record: dict) -> str:
    def quoted(value: object) -> str:
        return str(value).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

    return ",".join(f'{key}="{quoted(record[key])}"' for key in _LABELS)


def comma_separated(records: list[dict]) -> str:
    r"""CSV with a header: a line a record, seconds by phase in columns of their own.

    records: of a results file.

    >>> record = {"strategy": "greedy", "seed": 0, "id": "a", "usage": {"generated": 7}}
    >>> comma_separated([record]).splitlines()[1].split(",")[:3]
    ['greedy', '0', 'a']
    """
    phases = list(dict.fromkeys(p for r in records for p in r["usage"].get("seconds", {})))
    figures = list(_HELP)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = [*_LABELS, "pred", "correct", "stop_reason", *figures]
    writer.writerow([*head, *(f"seconds_{phase}" for phase in phases), "error"])
    for record in records:
        usage, seconds = record["usage"], record["usage"].get("seconds", {})
        row = [record.get(key) for key in head[: -len(figures)]]
        row += [usage.get(key) for key in figures]
        writer.writerow([*row, *(seconds.get(phase) for phase in phases), record.get("error")])
    return out.getvalue()


FORMATS: dict[str, Callable[[list[dict]], str]] = {
    "prometheus": prometheus,
    "csv": comma_separated,
}
"""By their names on the command line."""
