"""Draft trees: links and masks, other engines' layouts there and back, what to move."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ttc_kernels import DraftTree, VerifyResult, commit_kv, commit_plan


def random_tree(seed: int, requests: int = 9, largest: int = 256) -> DraftTree:
    random = np.random.default_rng(seed)
    counts = random.integers(0, largest + 1, requests)
    counts[0] = largest
    parents = [-1 if v == 0 else int(random.integers(v)) for n in counts for v in range(n)]
    return DraftTree(parents, np.concatenate([[0], counts.cumsum()]))


def ancestors(parent: list[int], v: int) -> list[int]:
    return [v] if parent[v] < 0 else [v, *ancestors(parent, parent[v])]


@pytest.mark.parametrize("largest", [1, 6, 70, 256])
def test_links_and_masks(largest: int) -> None:
    tree = random_tree(largest, largest=largest)
    first, following, depth = (x.tolist() for x in tree.links())
    mask, ends = tree.mask(), tree.cu_nodes.tolist()
    deepest = 0
    for b in range(tree.num_requests):
        parent = tree.parent[ends[b] : ends[b + 1]].tolist()
        for v in range(len(parent)):
            children = [w for w, u in enumerate(parent) if u == v]
            assert first[ends[b] + v] == (children or [-1])[0]
            siblings = [w for w in range(v + 1, len(parent)) if v and parent[w] == parent[v]]
            assert following[ends[b] + v] == (siblings or [-1])[0]
            line = ancestors(parent, v)
            assert depth[ends[b] + v] == len(line) - 1
            deepest = max(deepest, len(line))
            words = [0] * 4
            for u in line:
                words[u // 64] |= 1 << (u % 64)
            got = [word % 2**64 for word in mask[ends[b] + v].tolist()]
            assert got == words
    assert tree.width == deepest


def test_layouts_of_other_engines_there_and_back() -> None:
    for seed in range(5):
        tree = random_tree(seed, largest=12)
        index, first, following = tree.to_sglang(14)
        assert index.shape == (9, 14) and (index >= 0).sum() == tree.num_nodes
        assert index[0, :12].tolist() == list(range(12))
        back = DraftTree.from_sglang(first, following)
        counts = tree.cu_nodes.diff().clamp(min=1)  # there, every request has a root
        assert back.cu_nodes.diff().tolist() == counts.tolist()
        parts = tree.parent.split(tree.cu_nodes.diff().tolist())
        kept = [p for part in parts for p in (part.tolist() or [-1])]
        assert back.parent.tolist() == kept
    chains = DraftTree.chains([3, 0, 1])
    assert chains.to_vllm().tolist() == [3, 3, 4]
    assert DraftTree.from_vllm(chains.to_vllm()).parent.tolist() == chains.parent.tolist()
    with pytest.raises(ValueError, match="to_vllm: only chains"):
        DraftTree([-1, 0, 0], [0, 3]).to_vllm()
    with pytest.raises(ValueError, match="from_sglang: request 0 is no tree at node 1"):
        DraftTree.from_sglang(torch.tensor([[1, 1]]), torch.tensor([[-1, -1]]))


_LINKS = DraftTree([-1, 0, 0], [0, 3])
REFUSED = {
    "negative drafts": (lambda: DraftTree.chains([2, -1]), r"chains: num_drafts must be .* -1"),
    "no vector": (lambda: DraftTree.chains(torch.ones(1, 2).int()), "chains: num_drafts"),
    "falling sums": (lambda: DraftTree.from_vllm(torch.tensor([2, 1])), r"from_vllm: .* \[2, 1\]"),
    "a matrix": (lambda: DraftTree.from_vllm(torch.tensor([[2, 1]])), "from_vllm: cu_num"),
    "a request without nodes": (
        lambda: DraftTree([-1], [0, 0, 1]).to_vllm(), "to_vllm: a request without nodes"
    ),
    "few columns": (lambda: _LINKS.to_sglang(2), "to_sglang: num_nodes must be at least 3, .* 2"),
    "an index beyond int32": (
        lambda: DraftTree(torch.tensor([-1, 2**32]), [0, 2]), "parent must be within int32"
    ),
    "another batch's result": (
        lambda: commit_plan(VerifyResult.empty(_LINKS), DraftTree([-1, -1], [0, 1, 2]),
                            torch.arange(2).int()),
        "commit_plan: result must be of the tree's 2 requests, got 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        make()
    with pytest.raises(TypeError, match="width must be an int, got float"):
        DraftTree([-1, 0], [0, 2], width=2.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("parent", "cu_nodes", "message"),
    [
        ([-1, 1, 0], [0, 3], r"parent\[1\] must be in \[0, 1\), an earlier node, got 1"),
        ([-1, 2, 0], [0, 3], r"parent\[1\]"),
        ([0, 0], [0, 2], r"parent\[0\] must be -1, the root's, got 0"),
        ([-1, -1], [0, 2], r"parent\[1\]"),
        ([-1, 0], [0, 1, 2], r"parent\[1\] must be -1"),
        ([-1, 0], [0, 3], "cu_nodes must rise from 0 to 2"),
        ([-1, 0], [1, 2], "cu_nodes must rise from 0"),
        ([-1, 0, 1], [0, 2, 1, 3], "cu_nodes must rise"),
        ([-1, *range(256)], [0, 257], "at most 256 nodes, got 257"),
    ],
)
def test_refuses_what_is_no_tree(parent, cu_nodes, message: str) -> None:
    with pytest.raises(ValueError, match="DraftTree: .*" + message):
        DraftTree(parent, cu_nodes)


def test_refuses_floats_and_narrow_outputs() -> None:
    with pytest.raises(TypeError, match="parent must be int32"):
        DraftTree([-1.0, 0.5], [0, 2])
    with pytest.raises(ValueError, match="width must be more than 2"):
        DraftTree([-1, 0, 1], [0, 3], width=2)


def test_the_accepted_path_is_moved_to_the_front() -> None:
    torch.manual_seed(0)
    tree = random_tree(1, requests=6, largest=20)
    pages, page_size = 40, 4
    k, v = torch.randn(2, pages, page_size, 1, 8)
    result = VerifyResult.empty(tree)
    slots, want, ends = [], {}, tree.cu_nodes.tolist()
    before = k.clone()
    free = torch.randperm(pages).tolist()
    for b in range(6):
        n = ends[b + 1] - ends[b]
        own = [free.pop() for _ in range(-(-n // page_size))]
        mine = [own[i // page_size] * page_size + i % page_size for i in range(n)]
        slots += mine
        if not n:
            continue
        parent = tree.parent[ends[b] : ends[b + 1]].tolist()
        path = ancestors(parent, n - 1)[::-1]
        result.path[b, : len(path)] = torch.tensor(path)
        result.num_accepted[b] = len(path) - 1
        for i, node in enumerate(path):
            want[mine[i]] = before.view(-1, 8)[mine[node]]
    src, dst = commit_plan(result, tree, torch.tensor(slots, dtype=torch.int32))
    assert src.dtype == dst.dtype == torch.int32
    commit_kv([k], [v], src, dst)
    for slot, value in want.items():
        assert torch.equal(k.view(-1, 8)[slot], value)
    with pytest.raises(TypeError, match="commit_plan: slots must be int32"):
        commit_plan(result, tree, torch.tensor(slots))
    with pytest.raises(ValueError, match="commit_plan: slots must be"):
        commit_plan(result, tree, torch.zeros(1, dtype=torch.int32))
