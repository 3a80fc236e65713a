"""Adapters of public verification kernels: what they hand over leads to our paths.

The fakes have the signatures of the projects' functions and verify in plain Python, by the
definition of the layout that they are given.
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from bench import verify, verify_beside
from bench.devices import CpuClock
from bench.draft_batches import choose_drafts
from bench.peers import drafts as drafts_module
from bench.peers import verify as peers
from bench.peers.base import Skip
from bench.peers.drafts import Drafts, torch_top_p
from ttc_kernels import (
    DraftDistribution,
    RowFilters,
    verify_chain,
    verify_greedy,
    verify_target_only,
)

_V, _B = 13, 40
_TREE = [-1, 0, 0, 1, 1, 2, 4, 0]
_CHAIN = [-1, 0, 1, 2, 3]
_FILTERS = [(1.0, 1.0), (0.7, 0.8)]


def _make(parent: list[int], temperature: float, top_p: float = 1.0) -> Drafts:
    generator = torch.Generator().manual_seed(len(parent))
    logits = (2 * torch.randn(_B * len(parent), _V, generator=generator)).bfloat16()
    tokens, tree = choose_drafts(logits, parent, generator)
    taken: set[tuple[int, int]] = set()  # SGLang's rule counts equal siblings twice
    for node in range(len(tokens)):
        above = node - node % len(parent) + parent[node % len(parent)]
        while (above, int(tokens[node])) in taken:
            tokens[node] = (tokens[node] + 1) % _V
        taken.add((above, int(tokens[node])))
    return Drafts(logits, tokens, tree, temperature, top_p)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch):
    """Has the adapters find modules with these functions."""

    def use(**functions) -> None:
        module = SimpleNamespace(**functions)

        def need(_, name, *wanted):
            assert all(hasattr(module, x) for x in wanted), (name, wanted)
            return module

        monkeypatch.setattr(peers, "need", need)

    return use


def _is(x: torch.Tensor, dtype: torch.dtype, *shape: int) -> None:
    assert x.dtype == dtype and x.shape == shape and x.is_contiguous()


def _probabilities(logits: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """By definition, row by row, in float64."""
    rows = []
    for row in logits.double():
        p, left = (row / temperature).softmax(-1), top_p
        out = torch.zeros_like(p)
        for token in p.argsort(descending=True).tolist():
            if left <= 0:
                break
            out[token], left = p[token], left - p[token].item()
        rows.append(out / out.sum())
    return torch.stack(rows)


def _walk_tree(b, candidates, index, child, sibling, choose, accept_index, predicts) -> int:
    """Goes down one request's links; choose(node, children) says which child, or None."""
    node, accepted = 0, 0
    accept_index[b, 0] = index[b, 0]
    while True:
        children, x = [], int(child[b, node])
        while x != -1:
            children.append(x)
            x = int(sibling[b, x])
        chosen = choose(node, children)
        if chosen is None:
            return accepted
        predicts[index[b, node]] = candidates[b, chosen]
        node, accepted = chosen, accepted + 1
        accept_index[b, accepted] = index[b, node]


def _check_links(n, width, predicts, accept_index, count, candidates, *links) -> None:
    _is(predicts, torch.int32, _B * n)
    _is(accept_index, torch.int32, _B, width)
    _is(count, torch.int32, _B)
    for x in (candidates, *links):
        _is(x, torch.int64, _B, n)
    assert (accept_index == -1).all()


def _paths(accept_index: torch.Tensor, n: int) -> list[list[int]]:
    return [[x % n for x in row if x >= 0] for row in accept_index.tolist()]


def _our_paths(result) -> list[list[int]]:
    return [[x for x in row if x >= 0] for row in result.path.tolist()]


def test_sglang_gets_the_links_and_likeliest_tokens(install):
    drafts, n, seen = _make(_TREE, 0.0), len(_TREE), {}

    def verify_tree_greedy(
        predicts, accept_index, accept_token_num, candidates, retrive_index, retrive_next_token,
        retrive_next_sibling, target_predict,
    ):  # fmt: skip
        links = (retrive_index, retrive_next_token, retrive_next_sibling)
        _check_links(n, 4, predicts, accept_index, accept_token_num, candidates, *links)
        _is(target_predict, torch.int64, _B, n)
        for b in range(_B):

            def choose(node, children, b=b):
                return next((c for c in children if candidates[b, c] == target_predict[b, node]),
                            None)  # fmt: skip

            accept_token_num[b] = _walk_tree(b, candidates, *links, choose, accept_index, predicts)
        seen["path"] = accept_index

    install(verify_tree_greedy=verify_tree_greedy, tree_speculative_sampling_target_only=None)
    verifier = peers.build_sglang(drafts)
    for _ in range(2):
        verifier.run()
    result = verify_greedy(drafts.logits, drafts.tokens, drafts.tree)
    assert _paths(seen["path"], n) == _our_paths(result)
    assert torch.equal(verifier.accepted(), result.num_accepted)
    assert 0 < result.num_accepted.float().mean() < 3


@pytest.mark.parametrize(("temperature", "top_p"), _FILTERS)
@pytest.mark.parametrize("takes_zeros", [True, False])
def test_sglang_gets_probabilities_and_coins(install, takes_zeros, temperature, top_p):
    drafts, n, seen = _make(_TREE, temperature, top_p), len(_TREE), {}
    expected = _probabilities(drafts.logits, temperature, top_p).view(_B, n, _V)

    def rule(
        predicts, accept_index, accept_token_num, candidates, retrive_index, retrive_next_token,
        retrive_next_sibling, uniform_samples, uniform_samples_for_final_sampling, target_probs,
        draft_probs, threshold_single, threshold_acc,
    ):  # fmt: skip
        assert threshold_single == threshold_acc == 1
        links = (retrive_index, retrive_next_token, retrive_next_sibling)
        _check_links(n, 4, predicts, accept_index, accept_token_num, candidates, *links)
        _is(uniform_samples, torch.float32, _B, n)
        _is(uniform_samples_for_final_sampling, torch.float32, _B)
        _is(target_probs, torch.float32, _B, n, _V)
        torch.testing.assert_close(target_probs.double(), expected, atol=1e-5, rtol=0)
        if draft_probs is not None:
            _is(draft_probs, torch.float32, _B, n, _V)
            assert (draft_probs == 0).all()
        for b in range(_B):

            def choose(node, children, b=b):
                mass = 0.0
                for c in children:
                    token = candidates[b, c]
                    mass += float(target_probs[b, node, token])
                    if uniform_samples[b, node] < mass:
                        return c
                    if draft_probs is not None:
                        draft_probs[b, node, token] = target_probs[b, node, token]
                return None

            accept_token_num[b] = _walk_tree(b, candidates, *links, choose, accept_index, predicts)
        seen.update(path=accept_index, coins=uniform_samples.flatten().clone())

    def with_zeros(*args, target_probs=None, draft_probs=None, **thresholds):
        rule(*args, **thresholds)

    def without(*args, target_probs=None, **thresholds):
        rule(*args, None, **thresholds)

    install(
        verify_tree_greedy=None,
        tree_speculative_sampling_target_only=with_zeros if takes_zeros else without,
        top_p_renorm_prob=torch_top_p,
    )
    verifier = peers.build_sglang(drafts)
    coins = []
    for _ in range(2):
        verifier.run()
        filters = RowFilters(temperature, top_p=top_p)
        result = verify_target_only(
            drafts.logits, filters, drafts.tokens, drafts.tree, 0, 0, coins=seen["coins"]
        )
        assert _paths(seen["path"], n) == _our_paths(result)
        assert torch.equal(verifier.accepted(), result.num_accepted)
        coins.append(seen["coins"])
    assert not torch.equal(*coins) and 0 < result.num_accepted.float().mean() < 3


def _chain_coins() -> torch.Tensor:
    """float32 [B, n], a coin for each node; the root's is not used."""
    return torch.rand(_B, len(_CHAIN), generator=torch.Generator().manual_seed(1))


def _our_chains(drafts: Drafts):
    filters, draft = RowFilters(drafts.temperature, top_p=drafts.top_p), DraftDistribution.one_hot()
    return verify_chain(
        drafts.logits, filters, drafts.tokens, drafts.tree, draft, 0, 0,
        coins=_chain_coins().flatten(),
    )  # fmt: skip


@pytest.mark.parametrize(("temperature", "top_p"), _FILTERS)
@pytest.mark.parametrize("seeded", [True, False])
def test_flashinfer_gets_both_sides_probabilities(install, seeded, temperature, top_p):
    drafts, n, coins = _make(_CHAIN, temperature, top_p), len(_CHAIN), _chain_coins()
    expected = _probabilities(drafts.logits, temperature, top_p).view(_B, n, _V)
    offsets = []

    def chain(draft_probs, draft_token_ids, target_probs, accepted, emitted):
        _is(draft_probs, torch.float32, _B, n - 1, _V)
        _is(draft_token_ids, torch.int32, _B, n - 1)
        _is(target_probs, torch.float32, _B, n, _V)
        for counter in (accepted, emitted):
            _is(counter, torch.int32, _B)
            assert (counter == 0).all()
        torch.testing.assert_close(target_probs.double(), expected, atol=1e-5, rtol=0)
        for b in range(_B):
            for i, token in enumerate(draft_token_ids[b].tolist()):
                if not coins[b, i + 1] * draft_probs[b, i, token] < target_probs[b, i, token]:
                    break
                emitted[b] += 1
        return (draft_token_ids,)

    def seedless(draft_probs, draft_token_ids, target_probs, accepted, emitted):
        return chain(draft_probs, draft_token_ids, target_probs, accepted, emitted)

    def with_seed(*args, seed=None, offset=None):
        _is(seed, torch.int64, 1)
        offsets.append(offset.item())
        return chain(*args)

    softmax = {"softmax": lambda x, temperature: (x.float() / temperature).softmax(-1)}
    install(
        chain_speculative_sampling=with_seed if seeded else seedless,
        top_p_renorm_probs=torch_top_p,
        **(softmax if seeded else {}),
    )
    verifier = peers.build_flashinfer(drafts)
    for _ in range(2):
        verifier.run()
        assert torch.equal(verifier.accepted(), _our_chains(drafts).num_accepted)
    assert len(set(offsets)) == len(offsets) == 2 * seeded
    assert 0 < _our_chains(drafts).num_accepted.float().mean() < 4


def _top_k_top_p(logits: torch.Tensor, k, p: torch.Tensor) -> torch.Tensor:
    assert k is None
    _is(p, torch.float32, len(logits))
    return torch_top_p(logits.softmax(-1), p[0].item()).log()


@pytest.mark.parametrize("argument", ["target_logits", "target_probs"])
@pytest.mark.parametrize(("temperature", "top_p"), [*_FILTERS, (0.0, 1.0)])
def test_vllm_gets_running_counts(install, argument, temperature, top_p):
    drafts, n, coins = _make(_CHAIN, temperature, top_p), len(_CHAIN), _chain_coins()
    bonus_tokens = []

    def rejection_sample(ids, counts, longest, ends, draft_probs, target, bonus, metadata):
        _is(ids, torch.int32, _B * (n - 1))
        _is(ends, torch.int32, _B)
        _is(bonus, torch.int32, _B, 1)
        assert target.shape == (_B * (n - 1), _V) and target.is_contiguous()
        assert draft_probs is None and counts == [n - 1] * _B and longest == n - 1
        assert metadata.generators == {} and (metadata.temperature == temperature).all()
        assert metadata.all_greedy == (temperature == 0) != metadata.all_random
        bonus_tokens.append(bonus.flatten().tolist())
        out = torch.full((_B, longest + 1), -1, dtype=torch.int32)
        probs = target if argument == "target_probs" else target.softmax(-1, torch.float32)
        begin = 0
        for b, end in enumerate(ends.tolist()):
            for i, (token, row) in enumerate(
                zip(ids[begin:end].tolist(), probs[begin:end], strict=True)
            ):
                out[b, i] = token
                if temperature == 0:
                    out[b, i] = row.argmax()
                    if out[b, i] != token:
                        break
                elif not coins[b, i + 1] < row[token]:
                    break
            else:
                out[b, end - begin] = bonus[b, 0]
            begin = end
        return out

    signature = {
        "target_logits": lambda a, b, c, d, e, target_logits, f, g: rejection_sample(
            a, b, c, d, e, target_logits, f, g
        ),
        "target_probs": lambda a, b, c, d, e, target_probs, f, g: rejection_sample(
            a, b, c, d, e, target_probs, f, g
        ),
    }
    install(rejection_sample=signature[argument], apply_top_k_top_p=_top_k_top_p)
    verifier = peers.build_vllm(drafts)
    for _ in range(2):
        verifier.run()
    ours = _our_chains(drafts)
    assert torch.equal(verifier.accepted(), ours.num_accepted.long())
    last_rows = drafts.logits.view(_B, n, _V)[:, -1]
    if temperature == 0:
        assert bonus_tokens[0] == last_rows.argmax(-1).tolist()
    else:  # drawn anew from what the filters keep
        assert bonus_tokens[0] != bonus_tokens[1]
        kept = _probabilities(last_rows, temperature, top_p) > 0
        assert all(kept[b, token] for b, token in enumerate(bonus_tokens[0]))
    assert 0 < ours.num_accepted.float().mean() < 4


@pytest.mark.parametrize(("temperature", "top_p"), [*_FILTERS, (0.0, 1.0)])
def test_vllm_from_logits_gets_its_maps(install, temperature, top_p):
    drafts, n, coins = _make(_CHAIN, temperature, top_p), len(_CHAIN), _chain_coins()

    def rejection_sample(
        target_logits, draft_logits, draft_sampled, cu_num_logits, pos, idx_mapping,
        expanded_idx_mapping, expanded_local_pos, temps, seed, num_speculative_steps,
    ):  # fmt: skip
        assert draft_logits is None and num_speculative_steps == n - 1
        assert target_logits.shape == (_B * n, _V)
        for x in (draft_sampled, expanded_idx_mapping, expanded_local_pos):
            _is(x, torch.int32, _B * n)
        _is(pos, torch.int64, _B * n)
        _is(temps, torch.float32, _B)
        _is(seed, torch.int64, _B)
        assert idx_mapping.tolist() == list(range(_B))
        probs = target_logits.softmax(-1, torch.float32)
        sampled = torch.full((_B, n), -1, dtype=torch.int64)
        num_sampled = torch.zeros(_B, dtype=torch.int32)
        for b in range(_B):
            begin, end = cu_num_logits[b : b + 2].tolist()
            for row in range(begin, end):
                num_sampled[b] += 1
                assert expanded_idx_mapping[row] == b and expanded_local_pos[row] == row - begin
                if expanded_local_pos[row] >= num_speculative_steps:
                    break
                token = int(draft_sampled[row + 1])
                if temps[b] == 0 and probs[row].argmax() != token:
                    break
                if temps[b] > 0 and not coins[b, row - begin + 1] < probs[row, token]:
                    break
        return sampled, num_sampled

    install(rejection_sample=rejection_sample, apply_top_k_top_p=_top_k_top_p)
    verifier = peers.build_vllm_from_logits(drafts)
    verifier.run()
    ours = _our_chains(drafts)
    assert torch.equal(verifier.accepted(), ours.num_accepted)
    assert 0 < ours.num_accepted.float().mean() < 4


@pytest.mark.parametrize("peer", sorted(set(peers.PEERS) - peers.TREE_PEERS))
def test_chain_peers_refuse_trees_and_single_rows(install, peer):
    install(chain_speculative_sampling=None, rejection_sample=None, apply_top_k_top_p=None)
    with pytest.raises(Skip, match="chains only"):
        peers.PEERS[peer](_make(_TREE, 1.0))
    with pytest.raises(Skip, match="needs drafts"):
        peers.PEERS[peer](_make([-1], 1.0))


def test_what_is_missing_has_a_reason():
    on_gpu = SimpleNamespace(logits=SimpleNamespace(device=torch.device("cuda")))
    with pytest.raises(Skip, match="ModuleNotFoundError: No module named 'no_such_library'"):
        drafts_module.need(on_gpu, "no_such_library", "rule")  # type: ignore[arg-type]
    with pytest.raises(Skip, match="json has no verify_tree"):
        drafts_module.need(on_gpu, "json", "dumps", "verify_tree")  # type: ignore[arg-type]
    assert drafts_module.need(on_gpu, "json", "dumps") is json  # type: ignore[arg-type]
    with pytest.raises(Skip, match="runs on a GPU only"):
        drafts_module.need(_make(_TREE, 1.0), "json", "dumps")


def test_top_p_keeps_the_fewest_tokens_that_reach_it():
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    found = torch_top_p(logits.softmax(-1), 0.6)
    torch.testing.assert_close(found.double(), _probabilities(logits, 1.0, 0.6), atol=1e-6, rtol=0)
    assert (found > 0).sum() < 45


def test_the_command_says_once_why_peers_are_missing(tmp_path, capsys):
    file = tmp_path / "verify.json"
    arguments = ["--vocab", "300", "--rows", "1", "32", "--rounds", "2", "--json", str(file)]
    assert verify.main(arguments) == 0
    printed = capsys.readouterr().out
    for peer in peers.PEERS:
        assert printed.count(f"{peer} left out: runs on a GPU only\n") == 1
    first, second = json.loads(file.read_text())["results"]
    assert max(second["needed"].values()) > 1 and not second["beside"] and not second["eager"]
    for case in (first, second):
        assert case["rounds"] == {"torch, T = 1": 2, "torch, T = 0.7, top-p 0.95": 2}
        ours = {verify.READ.format(n) for n in case["needed"].values()} | set(case["needed"])
        ours |= {verify.CALL}
        assert set(case["rounds"]) | ours == set(case["timings"])


def test_peers_that_run_are_timed_beside_the_same_rule(monkeypatch, capsys):
    def fine(drafts: Drafts) -> drafts_module.Verifier:
        b, _ = drafts.shape
        return drafts_module.Verifier(lambda: None, lambda: torch.full((b,), 2))

    def broken(drafts: Drafts) -> drafts_module.Verifier:
        raise RuntimeError("no kernel image\nand more")

    monkeypatch.setattr(verify_beside, "PEERS", {"SGLang": fine, "vLLM": fine, "broken": broken})
    drafts, case, runs = _make(_TREE, 1.0), verify.Case(_V, _B * 8, "bfloat16"), {}
    told: set[str] = set()
    names = ["SGLang", "vLLM", "broken"]
    ours = {f"verify_target_only, {name}": print for name in verify_beside.FILTERS}
    runs = {"verify_greedy": print, **ours}
    verify_beside.add_peers(runs, names, drafts.logits, drafts.tokens, drafts.tree, case, told)
    assert capsys.readouterr().out == "broken left out: fails with RuntimeError: no kernel image\n"
    assert case.beside["SGLang, greedy"] == "verify_greedy"
    assert case.beside["SGLang, T = 1"] == "verify_target_only, T = 1"
    assert case.beside["vLLM, T = 1"] == "verify_chain, T = 1" and case.accepted["vLLM, T = 1"] == 2
    assert set(case.beside) | set(case.beside.values()) == set(runs) and len(runs) == 12
    rows = _B * (1 + case.accepted["verify_chain, greedy"])
    assert _B < case.needed["verify_chain, greedy"] == pytest.approx(rows)


def test_the_torch_formulation_keeps_to_its_time():
    args = verify.parser().parse_args(["--torch-seconds", "0", "--rounds", "7"])
    case = verify.Case(1, 1, "float32")
    calls: list[int] = []
    runs = {"torch, T = 1": lambda: calls.append(1)}
    verify_beside.time_torch(runs, case, args, CpuClock())
    assert case.rounds == {"torch, T = 1": 1} and len(calls) == 2  # the first warms up
    assert set(case.timings) == set(runs)
