"""The call for GPU machines: limits hold, failures are recorded, and the rest goes on."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import engine_smoke, gpu, moves, small
from bench.gpu_parts import Part, make_parts


def _python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu, "_LEAST_SECONDS", 0.1)
    (tmp_path / "work").mkdir()
    made = []

    def make(total_s: float = 100) -> gpu.Runner:
        made.append(gpu.Runner(tmp_path, tmp_path / "work", total_s))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_failure_or_hang_does_not_stop_the_rest(tmp_path: Path, runner):
    run = runner()
    child = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {!r}]); {}"
    mark = tmp_path / "late"
    late = f"import time; time.sleep(4); open({str(mark)!r}, 'w')"
    parts = [
        Part(
            "good", 60, _python("import os; open(os.environ['WORK'] + '/a.json', 'w').write('7')")
        ),
        Part("bad", 60, _python("raise SystemExit(3)")),
        Part("hang", 2, _python(child.format(late, "time.sleep(60)"))),
        Part("absent", 60, ["no-such-program"], needs=("no-such-program",)),
        Part("broken", 60, ["no-such-program"]),
        Part("unmet", 60, _python(""), condition=_python("raise SystemExit('needs a moon')")),
        Part("last", 60, _python("print('to the log')")),
    ]
    start = time.monotonic()
    for part in parts:
        run.run(part, tmp_path)
    assert time.monotonic() - start < 40
    document = json.loads((tmp_path / "gpu.json").read_text())
    found = {o["name"]: (o["status"], o["reason"]) for o in document["parts"]}
    assert found["good"] == found["last"] == ("ok", "")
    assert found["bad"] == ("failed", "exit code 3")
    assert found["hang"] == ("timeout", "took more than 2 s")
    assert found["absent"] == ("skipped", "not on this machine: no-such-program")
    assert found["broken"][0] == "failed"
    assert found["unmet"] == ("skipped", "needs a moon")
    assert document["results"] == {"a": 7}
    assert "to the log" in (tmp_path / "gpu.log").read_text()
    time.sleep(5)
    assert not mark.exists(), "what a part started must end with it"


def test_parts_that_no_longer_fit_are_skipped(tmp_path: Path, runner):
    run = runner(total_s=5.5)
    assert run.run(Part("long", 60, _python("import time; time.sleep(60)")), tmp_path).limit_s < 3
    outcome = run.run(Part("next", 60, _python("")), tmp_path)
    assert (outcome.status, outcome.reason) == ("skipped", "no time left")


def test_a_part_in_the_background_is_waited_for(tmp_path: Path, runner):
    run = runner()
    code = "import time; time.sleep(1); print('built')"
    behind = run.run(Part("build", 30, _python(code), background=True), tmp_path)
    assert behind.status == "running"
    assert run.run(Part("beside", 30, _python("")), tmp_path).status == "ok"
    run.wait_for("build")
    assert behind.status == "ok"
    assert "built" in (tmp_path / "gpu.log").read_text()


def test_summary_names_every_part_and_every_tree(tmp_path: Path):
    outcomes = [gpu.Outcome("trees", "ok"), gpu.Outcome("flex", "failed", reason="exit code 1")]
    peers = {"sdpa": {"ratio": 3.0}, "cascade": {"ratio": 1.5}, "flex": {"ratio": None}}
    row = {"tree": "1,2x3,4", "ours": {"median": 2e-6}, "roofline_fraction": 0.5, "peers": peers}
    document = {"results": [row, {**row, "ours": None}]}
    (tmp_path / "tree_attention_cuda_bf16.json").write_text(json.dumps(document))
    text = gpu.summary(outcomes, tmp_path)
    assert "flex             failed" in text and "exit code 1" in text
    assert text.count("1,2x3,4") == 1
    assert "2.0 µs,  2.00 x floor, best peer cascade 1.50" in text


def test_dry_run_passes_and_finds_wrong_arguments(tmp_path: Path, capsys):
    command = ["bash", "bench/gpu.sh", "--dry-run"]
    root = Path(__file__).parents[2]
    env = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "OUT": str(tmp_path)}
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "arguments: ok" in done.stdout and "tests/verify/" in done.stdout
    wrong = Part("wrong", 9, _python(""), module=("bench.replay", ["--search", "nowhere"]))
    assert gpu.dry_run([wrong]) == 1
    assert gpu.dry_run([Part("gone", 9, ["no-such-program"])]) == 1
    assert "there is no no-such-program" in capsys.readouterr().out


def test_without_a_device_nothing_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    monkeypatch.setenv("OUT", str(tmp_path))
    assert gpu.main([]) == 1
    (outcome,) = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert (outcome["name"], outcome["status"]) == ("device", "failed")
    assert "torch sees no CUDA device" in (tmp_path / "gpu.log").read_text()


def test_a_given_wheel_is_tried_before_building(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WHEEL", "dist/a b.whl")
    before, _ = make_parts(tmp_path, tmp_path, tmp_path)
    script = next(part for part in before if part.name == "install").command[-1]
    assert script.index("a b.whl'") < script.index(" || (") < script.index("pip wheel")
    monkeypatch.delenv("WHEEL")
    before, _ = make_parts(tmp_path, tmp_path, tmp_path)
    script = next(part for part in before if part.name == "install").command[-1]
    assert "||" not in script and "pip wheel" in script


def test_small_calls_of_every_kernel_are_right(capsys, monkeypatch: pytest.MonkeyPatch):
    assert small.main([]) == 0
    assert capsys.readouterr().out.count("right") == 7
    for name in ("write_kv", "copy_pages", "commit_kv"):
        with monkeypatch.context() as patch:
            patch.setattr(small, name, lambda *_, **__: None)
            assert small.main([]) == 1


def test_moves_are_timed_beside_torch_and_their_floor(tmp_path: Path, capsys):
    file = tmp_path / "moves.json"
    small_case = ["--tokens", "8", "--layers", "2", "--rows", "3", "--rounds", "1"]
    assert moves.main([*small_case, "--json", str(file)]) == 0
    document = json.loads(file.read_text())
    assert document["wrong"] == [] and len(document["results"]) == 7
    for case in document["results"]:
        assert case["floor_s"] > 0 and {"ours", "torch"} == set(case["modes"]["cold"])
    table = capsys.readouterr().out
    assert all(op in table for op in ("write_kv", "copy_pages", "commit_kv", "merge_states"))


def test_a_wrong_contender_is_not_timed(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(moves._Torch, "commit_kv", staticmethod(lambda *_: None))
    case = ["--tokens", "8", "--layers", "1", "--rows", "2", "--rounds", "1"]
    assert moves.main(case) == 1
    assert "torch disagrees with the definition" in capsys.readouterr().out


def test_without_the_cuda_kernels_the_library_part_fails(tmp_path: Path):
    from ttc_kernels import _load

    _, parts = make_parts(tmp_path, tmp_path, tmp_path)
    (part,) = (part for part in parts if part.name == "library")
    done = subprocess.run(part.command, capture_output=True, text=True)
    assert (done.returncode == 0) == (_load.cuda_error is None)
    assert (_load.cuda_error or "") in done.stderr


def test_engine_smoke_on_the_cpu(tmp_path: Path):
    file = tmp_path / "engine.json"
    assert engine_smoke.main(["--limit", "2", "--n", "2", "--json", str(file)]) == 0
    (run,) = json.loads(file.read_text())["runs"]
    assert (run["problems"], run["failed"], run["recomputed"]) == (2, 0, 0)
    assert run["generated"] > 10 and run["scored"] > 10 and len(run["texts"]) == 2
