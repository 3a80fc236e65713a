"""One small call of every kernel, checked, for tools that make a program very slow.

compute-sanitizer python -m bench.small --device cuda
"""

from __future__ import annotations

import argparse
import sys

import torch

from ttc_kernels import (
    DraftDistribution,
    DraftTree,
    RowFilters,
    StepHead,
    _load,
    aggregate_steps,
    commit_kv,
    copy_pages,
    merge_states,
    row_descriptor,
    sample_children,
    sample_tokens,
    score_round,
    score_steps,
    select_topk,
    token_logprobs,
    verify_chain,
    verify_sampled,
    verify_tree,
    write_kv,
)

from .forest import Forest
from .measure import check
from .peers import Ours, make_problem
from .tree import parse_tree

_FORESTS = (
    parse_tree("1,2,8x40,33,3"),
    Forest("small", "extend", (-1, 0, 0, 2, 2), (300, 7, 16, 3, 30), (5, 3, 20)),
    Forest("small", "draft", (-1, -1, 0, 1), (90, 9, 4, 4), (4, 4), (-1, 0, 1, 0)),
)


def main(argv: list[str] | None = None) -> int:
    """Run the command; see --help. Returns 1 if a result is wrong."""
    args = parser().parse_args(argv)
    device = torch.device(args.device)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    failures = []
    for forest in _FORESTS:
        for deterministic in (False, True):
            problem = make_problem(forest, (8, 2), 64, dtype, 1 << 30, device)
            error, wrong = check(Ours(problem, deterministic, args.backend), problem)
            print(f"tree_attention {forest.name}, deterministic={deterministic}: {error:.1e}")
            failures += [wrong] if wrong else []
    for name, kernel in (
        ("caches", _caches),
        ("converted", _converted),
        ("merged", _merged),
        ("scores", _scores),
        ("round", _round),
        ("samples", _samples),
        ("verified", _verified),
    ):
        is_right = kernel(device, dtype)
        print(f"{name}: {'right' if is_right else 'WRONG'}")
        failures += [] if is_right else [name]
    for failure in failures:
        print(failure, file=sys.stderr)
    return int(bool(failures))


def _caches(device: torch.device, dtype: torch.dtype) -> bool:
    """Two tokens are written, their page is copied, and one of them moves."""
    k_cache, v_cache = torch.zeros(2, 3, 4, 2, 64, device=device, dtype=dtype)
    k, v = torch.randn(2, 3, 2, 64, device=device, dtype=dtype)
    slots = torch.tensor([5, -1, 6], dtype=torch.int32, device=device)
    write_kv(k, v, k_cache, v_cache, slots)
    copies = torch.tensor([[1, 2, 3]], dtype=torch.int32, device=device)
    copy_pages([k_cache], [v_cache], copies)
    commit_kv([k_cache], [v_cache], slots[2:] + 4, slots[:1] + 6)
    wanted = [(cache[page, slot], x) for cache, new in ((k_cache, k), (v_cache, v))
              for page, slot, x in ((1, 1, new[0]), (1, 2, new[2]), (2, 1, new[0]),
                                    (2, 2, new[2]), (2, 3, new[2]))]  # fmt: skip
    return all(torch.equal(got, x) for got, x in wanted) and not k_cache[0].any()


def _converted(device: torch.device, dtype: torch.dtype) -> bool:
    """Keys turned by a quarter, and keys and values rounded to float8."""
    fp8 = torch.float8_e4m3fn
    k, v = torch.randn(2, 2, 2, 64, device=device, dtype=dtype)
    quarter_turn = torch.cat([torch.zeros(1, 32), torch.ones(1, 32)], dim=-1).to(device)
    positions = torch.zeros(2, dtype=torch.int64, device=device)
    slots = torch.tensor([5, 6], dtype=torch.int32, device=device)
    turned = torch.cat([-k[..., 32:], k[..., :32]], dim=-1)
    right = []
    for to in (dtype, fp8):
        caches = torch.zeros(2, 3, 4, 2, 64, device=device).to(to)
        write_kv(k, v, *caches, slots, positions=positions, cos_sin=quarter_turn)
        for cache, x in zip(caches, (turned, v), strict=True):
            right.append(torch.equal(cache[1, 1:3].float(), x.to(to).float()))
    return all(right)


def _merged(device: torch.device, dtype: torch.dtype) -> bool:
    """Equal weights give the mean; an empty state that is no number is left out."""
    outs = torch.randn(3, 5, 2, 64, device=device, dtype=dtype)
    lses = torch.zeros(3, 5, 2, device=device)
    outs[1], lses[1] = torch.nan, -torch.inf
    out, lse = merge_states(outs, lses)
    mean = (outs[0].double() + outs[2].double()) / 2
    close = torch.allclose(out.double(), mean, rtol=1e-2, atol=1e-2)
    return close and torch.allclose(lse, torch.full_like(lse, 2.0).log())


def _scores(device: torch.device, dtype: torch.dtype) -> bool:
    """The scores of three rows by a value head, against the same in float64."""
    hidden, weight = torch.randn(5, 96, device=device, dtype=dtype), torch.randn(96, dtype=dtype)
    rows = torch.tensor([0, 4, 2], dtype=torch.int32, device=device)
    head = StepHead.value(weight.to(device), torch.zeros(1, device=device, dtype=dtype))
    scores = score_steps(hidden, rows, head).double().cpu()
    logits = hidden.double().cpu()[[0, 4, 2]] @ weight.double()
    return torch.allclose(scores, logits.sigmoid(), rtol=1e-4, atol=1e-4)


def _round(device: torch.device, dtype: torch.dtype) -> bool:
    """A round of two groups by a head of many outputs: what its three ops give, ties and all."""
    hidden, weight = torch.randn(9, 96, device=device, dtype=dtype), torch.randn(600, 96) / 10
    head = StepHead.softmax(weight.to(dtype), good=(0, 7)).to(device)
    rows, parent, groups = (
        torch.tensor(values, dtype=torch.int32, device=device)
        for values in ([8, 1, 1] * 7, [-1] * 20 + [0], [0, 13, 21])
    )
    norm = (torch.ones(96, device=device), 1e-6)
    got = score_round(hidden, rows, head, parent, groups, 4, by="prod", norm=norm)
    aggregates = aggregate_steps(score_steps(hidden, rows, head, norm=norm), parent)
    same = torch.equal(got.aggregates.stats, aggregates.stats)
    return same and torch.equal(got.selected, select_topk(aggregates.prod, groups, 4))


def _samples(device: torch.device, dtype: torch.dtype) -> bool:
    """Temperature 0 takes the largest logit of each row."""
    logits = torch.randn(4, 3000, device=device)
    seeds = torch.arange(4, device=device)
    tokens = sample_tokens(logits, row_descriptor(logits, 0.0), seeds, seeds)
    return torch.equal(tokens.cpu().long(), logits.argmax(-1).cpu())


def _verified(device: torch.device, dtype: torch.dtype) -> bool:
    """Drafts that the target itself draws are accepted, also by rules told where they are from."""
    if device.type == "cuda" and not _load.has_cuda_kernel("verify"):
        print("verified: not all of it, there are no CUDA kernels")
        return True
    logits = torch.randn(4, 3000, device=device).to(dtype)
    desc = row_descriptor(logits, 0.8, top_k=50, top_p=0.9)
    places = torch.arange(4, device=device)
    drawn = sample_tokens(logits, desc, 7, places)
    tokens = torch.cat([drawn[:1], drawn[:3]])
    tree = DraftTree.chains([3], device=device)
    keys = (tokens, tree, 7, 0)
    right = []
    for given in (desc, RowFilters(0.8, top_k=50, top_p=0.9)):
        result = verify_sampled(logits, given, *keys)
        right.append(torch.equal(result.tokens[0], drawn))
    draft = DraftDistribution.dense(logits, desc)
    results = [
        *(verify_chain(logits, desc, tokens, tree, draft, 7, 0, rule=r)
          for r in ("token", "block")),
        *(verify_tree(logits, desc, tokens, tree, draft, 7, 0, rule=r)
          for r in ("rejection", "traversal")),
    ]  # fmt: skip
    right += [bool((r.status == 0).all()) and bool((r.num_accepted == 3).all()) for r in results]
    children, logprobs, _ = sample_children(logits, desc, 5, "without_replacement", seeds=7)
    rows = places.int().repeat_interleave(5)
    processed, _ = token_logprobs(logits, desc, rows, children.flatten())
    right.append(torch.equal(processed, logprobs.flatten()))
    return all(right)


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = argparse.ArgumentParser(prog="python -m bench.small", description=__doc__)
    result.formatter_class = argparse.RawDescriptionHelpFormatter
    result.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    result.add_argument("--backend", default="auto", help="of tree_attention")
    return result


if __name__ == "__main__":
    raise SystemExit(main())
