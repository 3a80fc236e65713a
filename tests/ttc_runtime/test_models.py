"""Models over the paged cache: equal to transformers, rows that do not know their neighbours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import ARCHITECTURES
from transformers import AutoModelForCausalLM
from ttc_runtime.loading import CAUSAL_LM, model_directory
from ttc_runtime.models import PagedModel


def open_model(directory, num_pages=64, **arguments):
    model = PagedModel(directory, **{"device": "cpu", **arguments})
    model.allocate(num_pages)
    return model


def run(model, rows, keep=None):
    """Rows are (pool branch, new token ids); outputs of all new tokens unless keep says which."""
    slots = np.concatenate([branch.append(len(ids)) for branch, ids in rows])
    lens = np.array([len(ids) for _, ids in rows], np.int32)
    kv_lens = np.array([branch.length for branch, _ in rows], np.int32)
    ids = np.concatenate([np.asarray(ids, np.int64) for _, ids in rows])
    positions = np.concatenate(
        [np.arange(kv - n, kv) for kv, n in zip(kv_lens, lens, strict=True)]
    ).astype(np.int64)
    keep = np.arange(len(ids)) if keep is None else np.asarray(keep)
    branches = [branch for branch, _ in rows]
    return model.forward(ids, positions, slots, branches, kv_lens, lens, keep)


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_branched_tree_equals_transformers_on_each_path(tiny_model, architecture, page_size):
    directory = tiny_model(architecture)
    model = open_model(directory, 512, page_size=page_size)
    plain = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager")
    rng = np.random.default_rng(0)
    prompt = rng.integers(4, 40, 21)
    suffixes = [rng.integers(4, 40, n) for n in (1, 4, 12)]
    root = model.pool.new_branch()
    run(model, [(root, prompt)])
    rows = [(root.fork(1)[0], suffix) for suffix in suffixes]
    logits = run(model, rows)
    start = 0
    for suffix in suffixes:
        path = torch.from_numpy(np.concatenate([prompt, suffix]))
        with torch.no_grad():
            expected = plain(path[None]).logits[0, len(prompt) :]
        torch.testing.assert_close(
            logits[start : start + len(suffix)], expected, atol=1e-4, rtol=1e-4
        )
        start += len(suffix)


def row_alone_and_in_company(model, mates):
    """One row's logits by itself, and beside `mates` other branches in another batch position."""
    rng = np.random.default_rng(1)
    ids = rng.integers(4, 40, (mates + 1, 30))
    alone = model.pool.new_branch()
    run(model, [(alone, ids[0][:-1])], keep=[0])
    first = run(model, [(alone, ids[0][-1:])])[0]
    others = [model.pool.new_branch() for _ in range(mates)]
    run(model, [(branch, row[:-1]) for branch, row in zip(others, ids[1:], strict=True)], keep=[0])
    again = model.pool.new_branch()
    run(model, [(again, ids[0][:13])], keep=[0])  # and prefilled in other pieces
    run(model, [(others[0].fork(1)[0], [5, 6, 7]), (again, ids[0][13:-1])], keep=[0])
    rows = [(branch, row[-1:]) for branch, row in zip(others, ids[1:], strict=True)]
    rows.insert(mates // 2, (again, ids[0][-1:]))
    second = run(model, rows)[mates // 2]
    return first, second


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_rows_bits_do_not_depend_on_its_batch_mates(tiny_model, architecture, dtype):
    model = open_model(tiny_model(architecture, dtype=dtype), 512)
    first, second = row_alone_and_in_company(model, mates=90)
    assert torch.equal(first, second)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_of_a_wider_model_for_any_thread_count(tiny_model, dtype, threads):
    directory = tiny_model(
        "Qwen2",
        dtype=dtype,
        hidden_size=256,
        intermediate_size=1216,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = open_model(directory, 512)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        first, second = row_alone_and_in_company(model, mates=80)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(first, second)


def test_row_blocks_change_only_rounding(tiny_model):
    directory = tiny_model("Llama")
    outputs = []
    for arguments in ({"deterministic": False}, {"row_block": 16}, {"row_block": 64}):
        model = open_model(directory, **arguments)
        outputs.append(run(model, [(model.pool.new_branch(), np.arange(4, 40))]))
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0], atol=1e-5, rtol=1e-5)


def test_float16_becomes_float32_on_a_cpu_and_bfloat16_stays(tiny_model):
    assert open_model(tiny_model("Llama", dtype=torch.float16)).model.dtype == torch.float32
    assert open_model(tiny_model("Llama", dtype=torch.bfloat16)).model.dtype == torch.bfloat16


def test_unknown_directory_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"local directory with config\.json.*nowhere"):
        model_directory(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"Qwen/Qwen2\.5-0\.5B"):
        model_directory("Qwen/Qwen2.5-0.5B")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"page_size": 5}, "page_size: expected one of .* got 5"),
        ({"row_block": 20}, "row_block: .* got 20"),
        ({"dtype": "float99"}, "dtype: .*float99"),
    ],
)
def test_bad_arguments(tiny_model, arguments, message):
    with pytest.raises(ValueError, match=message):
        PagedModel(tiny_model("Llama"), **arguments)


def test_nan_weights_are_refused_by_name(tmp_path, tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model("Llama"))
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj\.weight has NaN"):
        PagedModel(tmp_path, CAUSAL_LM)


def test_missing_weights_and_unsupported_shapes_are_refused(tmp_path, tiny_model):
    from safetensors.torch import load_file, save_file

    source = tiny_model("Llama")
    for name in ("config.json", "generation_config.json"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    weights = load_file(source / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"weights missing.*lm_head"):
        PagedModel(tmp_path)
    with pytest.raises(ValueError, match="head_dim must be one of"):
        PagedModel(tiny_model("Llama", head_dim=32))
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    with pytest.raises(ValueError, match="rope_type 'dynamic'"):
        PagedModel(tiny_model("Llama", rope_parameters=rope))
