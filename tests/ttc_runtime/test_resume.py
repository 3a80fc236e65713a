"""Killing a run at any moment and starting it again gives the same result file."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ttc_runtime import DVTS, BestOfN, SamplingParams
from ttc_runtime.records import ResultWriter, read_results, settings
from ttc_runtime.runs import run_to_file

ROOT = Path(__file__).parents[2]
PATHS = os.pathsep.join([str(ROOT), str(ROOT / "python")])


def lasting(path):
    """The file's bytes without wall-clock times."""
    return re.sub(rb'"seconds": {[^}]*}', b"", path.read_bytes())


@pytest.fixture
def run(make_engine):
    """Function: solve 12 problems into a file, with one engine that forked processes share."""
    engine = make_engine(max_batch=6)  # results come one after the other
    shared = "words before every problem "  # run by one of them, whichever comes first
    texts = [f"{shared}{i}+{i}=\n" for i in range(12)]
    problems = [{"id": f"p{i}", "problem": t, "answer": str(2 * i)} for i, t in enumerate(texts)]
    strategy = DVTS(6, 2, max_steps=4, sampling=SamplingParams(max_tokens=40))

    def solve(out, on_result=None):
        engine.clear_cache()  # a new process would start without
        run_to_file(out, problems, strategy, lambda: engine, on_result=on_result)

    return solve


def test_sigkill_at_random_moments(run, tmp_path):
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    begun = time.monotonic()
    run(whole)
    duration = time.monotonic() - begun
    expected = lasting(whole)
    assert [record["id"] for record in read_results(whole)] == [f"p{i}" for i in range(12)]
    rng, sizes = random.Random(5), []
    for _ in range(4):
        broken.unlink(missing_ok=True)
        status = signal.SIGKILL
        while os.WIFSIGNALED(status):
            child = os.fork()
            if child == 0:
                try:
                    run(broken)
                finally:
                    os._exit(0)
            time.sleep(rng.uniform(0, duration / 2))
            os.kill(child, signal.SIGKILL)  # in vain if it is through already
            _, status = os.waitpid(child, 0)
            sizes.append(broken.stat().st_size if broken.exists() else 0)
        assert lasting(broken) == expected
    assert len(set(sizes)) >= 5, sizes  # killed with nothing done, with some, with more


def test_sigkill_while_a_result_is_written(run, tmp_path):
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    run(whole)
    pwrite = os.pwrite

    def torn(file, data, offset):
        pwrite(file, data[: len(data) // 3], offset)
        os.kill(os.getpid(), signal.SIGKILL)

    for _ in range(3):
        child = os.fork()
        if child == 0:
            run(broken, on_result=lambda _: setattr(os, "pwrite", torn))
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        assert not broken.read_bytes().endswith(b"\n")
    run(broken)
    assert lasting(broken) == lasting(whole)


def test_an_interrupt_keeps_what_is_done(tmp_path):
    out = tmp_path / "out.jsonl"
    arguments = "solve --model zoo:arith-small --problems zoo:arith-test --n 64"
    process = subprocess.Popen(
        [
            *[sys.executable, "-m", "ttc_runtime.cli", *arguments.split()],
            *["--strategy", "self_consistency", "--out", str(out)],
        ],
        env={**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        # Shells start what runs in the background without it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while process.poll() is None and not (out.exists() and out.stat().st_size):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert b"interrupted" in err and b"Traceback" not in err
    assert len(read_results(out)) >= 1


def record(name, error=None):
    from test_records import result

    return result(name, error=error)


def test_finishing_orders_the_file_and_keeps_other_runs(tmp_path):
    file = tmp_path / "r.jsonl"
    config = {"strategy": settings(BestOfN(4))}
    with ResultWriter(file, "greedy", 0, {"n": 1}) as writer:
        writer.write(record("z"))
    with ResultWriter(file, "greedy", 0, config) as writer:
        assert writer.done == set()  # the same strategy with other settings
        for name in ("c", "a"):
            writer.write(record(name))
        writer.write(record("b", error="out of memory"))
    with ResultWriter(file, "greedy", 0, config) as writer:
        assert writer.done == {"a", "c"}
        writer.write(record("b"))
        writer.finish(["a", "b", "c"])
        assert [r["id"] for r in read_results(file)] == ["z", "a", "b", "c"]
        writer.write(record("d"))  # the writer goes on in the new file
    assert [r["id"] for r in read_results(file)] == ["z", "a", "b", "c", "d"]
    assert [p.name for p in tmp_path.iterdir()] == ["r.jsonl"]


def test_killed_while_the_file_is_put_in_order(tmp_path, monkeypatch):
    file = tmp_path / "r.jsonl"
    with ResultWriter(file, "greedy", 0) as writer:
        for name in ("b", "a"):
            writer.write(record(name))
        before = file.read_bytes()

        def killed(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            writer.finish(["a", "b"])
    monkeypatch.undo()
    assert file.read_bytes() == before
    with ResultWriter(file, "greedy", 0) as writer:
        assert writer.done == {"a", "b"}
        writer.finish(["a", "b"])
    assert [json.loads(line)["id"] for line in file.read_text().splitlines()] == ["a", "b"]
