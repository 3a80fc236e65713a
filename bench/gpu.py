"""Everything a GPU machine should do, part by part, each with a time limit; see README.md here.

Uses nothing but the standard library, for it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from .gpu_parts import Part, make_parts

ROOT = Path(__file__).parent.parent
# A part that could not get this many seconds is not begun.
_LEAST_SECONDS = 8
_PARSE = """
import importlib, json, sys
for module, arguments in json.loads(sys.argv[1]):
    importlib.import_module(module).parser().parse_args(arguments)
    print(module, *arguments)
"""


@dataclass
class Outcome:
    """What became of a part: `status` is ok, failed, timeout or skipped; `reason` says why."""

    name: str
    status: str
    seconds: float = 0.0
    limit_s: float = 0.0
    returncode: int | None = None
    reason: str = ""
    command: str = ""


class Runner:
    """Runs parts one after another and keeps the record of them up to date.

    Args:
        out: folder for results.
        work: folder for what need not be kept.
        total_s: seconds that all parts may take together.
    """

    def __init__(self, out: Path, work: Path, total_s: float) -> None:
        self._out, self._work = out, work
        self._end = time.monotonic() + total_s
        self.outcomes: list[Outcome] = []
        self._behind: list[tuple[Part, Outcome, subprocess.Popen, float]] = []
        self._log = (out / "gpu.log").open("w")
        self._env = {**os.environ, "PYTHONUNBUFFERED": "1", "OUT": str(out), "WORK": str(work)}

    def setenv(self, **values: str) -> None:
        """Set environment variables of the parts that follow."""
        self._env.update(values)

    def run(self, part: Part, cwd: Path) -> Outcome:
        """Run one part to its end or limit; a part in the background is only begun."""
        outcome = Outcome(part.name, "skipped", command=" ".join(part.command))
        self.outcomes.append(outcome)
        limit = min(part.limit_s, self._end - time.monotonic() - (0 if part.background else 3))
        missing = [name for name in part.needs if shutil.which(name) is None]
        if missing:
            outcome.reason = f"not on this machine: {', '.join(missing)}"
        elif limit < _LEAST_SECONDS:
            outcome.reason = "no time left"
        elif part.condition and (why := self._unmet(part.condition, cwd)):
            outcome.reason = why
        else:
            outcome.limit_s = round(limit, 1)
            self._begin(part, outcome, cwd)
        if outcome.status == "skipped":
            self._say(f"--- {part.name}: skipped, {outcome.reason}")
        self.store()
        return outcome

    def _unmet(self, condition: list[str], cwd: Path) -> str:
        """Why the part cannot run: the last line of the failing condition."""
        done = subprocess.run(
            ["timeout", "60", *condition], cwd=cwd, env=self._env, capture_output=True, text=True
        )
        lines = (done.stderr or done.stdout or f"exit code {done.returncode}").strip().splitlines()
        return "" if done.returncode == 0 else lines[-1][:200]

    def _begin(self, part: Part, outcome: Outcome, cwd: Path) -> None:
        self._say(f"--- {part.name}: up to {outcome.limit_s:.0f} s: {outcome.command}")
        start = time.monotonic()
        # A background part has a file of its own, so that logs do not mix.
        log = (self._work / f"{part.name}.log").open("w") if part.background else self._log
        try:
            process = subprocess.Popen(
                part.command,
                cwd=cwd,
                env={**self._env, **part.env},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            outcome.status, outcome.reason = "failed", str(error)
            self._say(f"--- {part.name}: {error}")
            return
        if part.background:
            outcome.status = "running"
            self._behind.append((part, outcome, process, start))
        else:
            self._finish(outcome, process, start)

    def _finish(self, outcome: Outcome, process: subprocess.Popen, start: float) -> None:
        """Wait within the limit, then end the part and whatever it started."""
        try:
            left = outcome.limit_s - (time.monotonic() - start)
            outcome.returncode = process.wait(timeout=max(left, 0))
            outcome.status = "ok" if outcome.returncode == 0 else "failed"
            outcome.reason = "" if outcome.returncode == 0 else f"exit code {outcome.returncode}"
        except subprocess.TimeoutExpired:
            outcome.status, outcome.reason = "timeout", f"took more than {outcome.limit_s:.0f} s"
            _end_group(process)
        outcome.seconds = round(time.monotonic() - start, 1)
        self._say(f"--- {outcome.name}: {outcome.status} after {outcome.seconds} s")

    def wait_for(self, name: str) -> None:
        """Wait until a background part ends, or its limit."""
        for part, outcome, process, start in self._behind:
            if part.name == name and outcome.status == "running":
                # Its limit counts from its beginning; never past the end of all parts.
                left = self._end - time.monotonic() - 30
                outcome.limit_s = min(outcome.limit_s, time.monotonic() - start + max(left, 0))
                self._finish(outcome, process, start)
                self._say((self._work / f"{name}.log").read_text(errors="replace"), to_screen=False)
                self.store()

    def close(self) -> None:
        """End what still runs."""
        for part, outcome, _, _ in self._behind:
            if outcome.status == "running":
                self.wait_for(part.name)
        self.store()
        self._log.close()

    def store(self) -> None:
        """Write gpu.json: what became of the parts, and the results they have left so far."""
        results = {}
        for file in sorted(self._work.glob("*.json")):
            try:
                results[file.stem] = json.loads(file.read_text())
            except ValueError as error:
                results[file.stem] = f"not readable: {error}"
        document = {"parts": [asdict(o) for o in self.outcomes], "results": results}
        (self._out / "gpu.json").write_text(json.dumps(document, indent=1) + "\n")

    def _say(self, text: str, to_screen: bool = True) -> None:
        if to_screen:
            print(text, flush=True)
        self._log.write(text + "\n")
        self._log.flush()


def _end_group(process: subprocess.Popen) -> None:
    """End a process and its children: asked first, then killed."""
    for number, patience in ((signal.SIGTERM, 4), (signal.SIGKILL, 4)):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=patience)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def main(argv: list[str] | None = None) -> int:
    """Run all parts, or with --dry-run check them; see --help. Returns 1 if a part failed."""
    args = parser().parse_args(argv)
    out = Path(os.environ.get("OUT") or ROOT / "bench" / "results").resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ttc-gpu-") as directory:
        work = Path(directory)
        before, parts = make_parts(out, work, ROOT)
        parts = [part for part in parts if not args.only or part.name in args.only]
        if args.dry_run:
            return dry_run([*before, *parts])
        runner = Runner(out, work, args.seconds)
        for part in before:
            if runner.run(part, ROOT).status not in ("ok", "skipped"):
                print(f"{part.name} failed, so nothing else can run; see {out}/gpu.log")
                break
        else:
            stage = work / "stage"
            for folder in ("tests", "bench"):
                shutil.copytree(ROOT / folder, stage / folder)
            shutil.copy(ROOT / "pyproject.toml", stage)
            # Away from the sources, so that the installed package is what is tested.
            runner.setenv(PYTHONPATH=f"{stage}:{work / 'site'}")
            for part in parts:
                if part.waits_for:
                    runner.wait_for(part.waits_for)
                runner.run(part, stage)
        runner.close()
        print(summary(runner.outcomes, out))
    return int(any(o.status in ("failed", "timeout") for o in runner.outcomes))


def dry_run(parts: list[Part]) -> int:
    """Check every part's commands and arguments here; returns 1 if one is wrong."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'python'}"}
    failed = []
    modules = [part.module for part in parts if part.module]
    checks = [("arguments", [sys.executable, "-c", _PARSE, json.dumps(modules)])]
    checks += [(part.name, part.check) for part in parts if part.check]
    for name, command in checks:
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        print(f"{name}: {'ok' if done.returncode == 0 else 'WRONG'}")
        print("  " + "\n  ".join((done.stdout + done.stderr).strip().splitlines()[-12:]))
        if done.returncode:
            failed.append(name)
    for part in parts:
        absent = [name for name in part.needs if shutil.which(name) is None]
        if absent:
            print(f"{part.name}: skipped here, not on this machine: {', '.join(absent)}")
        elif shutil.which(part.command[0]) is None:
            print(f"{part.name}: WRONG, there is no {part.command[0]}")
            failed.append(part.name)
    print(f"{len(parts)} parts checked")
    return int(bool(failed))


def summary(outcomes: list[Outcome], out: Path) -> str:
    """The parts, and the figures of the main benchmark, in a few lines."""
    lines = [f"{o.name:16} {o.status:8} {o.seconds:6.1f} s  {o.reason}" for o in outcomes]
    file = out / "tree_attention_cuda_bf16.json"
    if file.exists() and any(o.name == "trees" and o.status != "skipped" for o in outcomes):
        for r in json.loads(file.read_text())["results"]:
            peers = {n: p["ratio"] for n, p in r["peers"].items() if p["ratio"]}
            best = min(peers, key=peers.__getitem__, default="none")
            if r["ours"]:
                lines.append(
                    f"{r['tree'][:44]:44} {r['ours']['median'] * 1e6:8.1f} µs, "
                    f"{1 / r['roofline_fraction']:5.2f} x floor, "
                    f"best peer {best} {peers.get(best, 0):.2f}"
                )
    lines.append(f"results in {out}")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = argparse.ArgumentParser(prog="bash bench/gpu.sh", description=__doc__)
    result.add_argument("--dry-run", action="store_true", help="only check the commands")
    result.add_argument("--only", nargs="+", help="parts by name; installing is always done")
    result.add_argument("--seconds", type=float, default=570, help="for all parts together")
    return result


if __name__ == "__main__":
    raise SystemExit(main())
