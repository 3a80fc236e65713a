"""The contenders of best-of-N decode the same model, and the command puts them side by side."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from bench import generate
from bench.contenders import NotInstalled, Outcome, Workload
from bench.model_dir import text_of, write_model

_TINY = {
    "vocab_size": 1024,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    # Larger than usual, so that greedy texts wander instead of repeating one token.
    "initializer_range": 0.2,
}


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    model: Path = tmp_path_factory.mktemp("bench") / "model"
    write_model(model, torch.float32, _TINY)
    return Workload(model, "fp32", n=4, prompt=60, new=9, vocab=1024, threads=1)


def test_text_and_tokens_are_the_same_thing(workload: Workload):
    tokenizer = AutoTokenizer.from_pretrained(workload.model, local_files_only=True)
    ids = workload.prompt_ids
    assert tokenizer(text_of(ids))["input_ids"] == ids
    assert tokenizer.decode(ids) == text_of(ids)
    assert tokenizer.eos_token_id is None


def test_contenders_agree_and_take_all_steps(workload: Workload):
    outcomes: dict[str, Outcome] = {}
    for name in generate.CONTENDERS:
        try:
            outcomes[name] = importlib.import_module(f"bench.contenders.{name}").run(workload)
        except NotInstalled:
            assert name == "llamacpp"
    steps = {name: len(outcome.step_s) for name, outcome in outcomes.items()}
    assert steps == dict.fromkeys(outcomes, workload.new - 1)
    expected = outcomes["hf_loop"].greedy
    assert len(set(expected)) > 4, "a text that repeats itself checks little"
    del outcomes["linears"]  # which has no text
    assert {name: o.greedy for name, o in outcomes.items()} == dict.fromkeys(outcomes, expected)


def test_failing_contender_is_an_error(workload: Workload):
    with pytest.raises(RuntimeError, match="contender hf_loop must exit with 0"):
        generate.measure("hf_loop", replace(workload, model=workload.model / "missing"), 9)


@pytest.fixture
def tiny_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in _TINY.items():
        monkeypatch.setitem(generate.SHAPE, name, value)


_ARGUMENTS = ["--dtype=fp32", "--n=3", "--prompt=60", "--new=5", "--threads=1", "--contenders"]


@pytest.mark.usefixtures("tiny_shape")
def test_command_puts_contenders_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture):
    file = tmp_path / "results" / "generate.json"
    argv = [*_ARGUMENTS, "hf_loop", "hf_generate", "--generate-new", "3", "--json", str(file)]
    assert generate.main(argv) == 0
    printed = capsys.readouterr().out
    assert all(generate.CONTENDERS[name] in printed for name in ("hf_loop", "hf_generate"))
    assert "16 of 16" in printed
    rows = {row["name"]: row for row in json.loads(file.read_text())["results"]}
    assert [len(rows[n]["outcome"]["step_s"]) for n in ("hf_loop", "hf_generate")] == [4, 2]
    assert all(0 < row["outcome"]["peak_gib"] < 8 for row in rows.values())
    # Two steps were run and four are counted.
    fewer = rows["hf_generate"]
    total = fewer["outcome"]["prefill_s"] + 4 * sum(fewer["outcome"]["step_s"]) / 2
    assert fewer["total_s"] == pytest.approx(total)
    assert fewer["tokens_per_s"] == pytest.approx(3 * 5 / total)


@pytest.mark.usefixtures("tiny_shape")
def test_command_fails_if_float32_texts_differ(monkeypatch: pytest.MonkeyPatch):
    def measure(name: str, workload: Workload, new: int) -> generate.Row:
        greedy = [1, 2, 3] if name == "hf_loop" else [1, 9, 3]
        return generate.Row(name, new, outcome=Outcome(1.0, [1.0], greedy))

    monkeypatch.setattr(generate, "measure", measure)
    argv = [*_ARGUMENTS, "hf_loop", "hf_generate"]
    assert generate.main(argv) == 1
    assert generate.main([*argv, "--dtype=bf16"]) == 0
