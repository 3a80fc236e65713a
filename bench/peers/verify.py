"""Public kernels that verify drafts: SGLang's, FlashInfer's and vLLM's.

All but the last start from probabilities of every row. Making them is part of a run, with the
project's own functions where it has public ones, else in torch. Buffers, links and whatever a
drafter would hand over are prepared untimed.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch

from .base import Skip
from .drafts import Drafts, Verifier, need, parameters, torch_top_p


def build_sglang(drafts: Drafts) -> Verifier:
    """SGLang's `verify_tree_greedy` and `tree_speculative_sampling_target_only`, on trees.

    Raises:
        Skip: where they cannot run.
    """
    names = ("verify_tree_greedy", "tree_speculative_sampling_target_only")
    kernels = need(drafts, "sgl_kernel", *names)
    (b, n), tree, logits = drafts.shape, drafts.tree, drafts.logits
    accept_index = drafts.empty(b, tree.width, dtype=torch.int32)
    accepted = drafts.empty(b, dtype=torch.int32)
    predicts = drafts.empty(b * n, dtype=torch.int32)
    links = tree.to_sglang(n)
    common = (predicts, accept_index, accepted, drafts.tokens.long().view(b, n), *links)
    likeliest = drafts.empty(b * n, dtype=torch.int64)

    def greedy() -> None:
        torch.argmax(logits, -1, out=likeliest)
        accept_index.fill_(-1)
        kernels.verify_tree_greedy(*common, likeliest.view(b, n))

    if drafts.temperature == 0:
        return Verifier(greedy, lambda: accepted)

    rule = kernels.tree_speculative_sampling_target_only
    probabilities = drafts.probabilities(getattr(kernels, "top_p_renorm_prob", torch_top_p))
    coins, final_coins = drafts.empty(b, n), drafts.empty(b)
    takes_zeros = "draft_probs" in parameters(rule)  # some versions do not
    zeros = torch.zeros(b * n if takes_zeros else 0, logits.shape[1], device=logits.device)
    is_draft = tree.parent >= 0
    parent_row = (tree.cu_nodes[:-1].repeat_interleave(n) + tree.parent)[is_draft].long()
    drafted, zero = drafts.tokens[is_draft].long(), drafts.empty(1)[0].zero_()

    def sampled() -> None:
        probs = probabilities().view(b, n, -1)
        coins.uniform_()
        final_coins.uniform_()
        accept_index.fill_(-1)
        more = ()
        if takes_zeros:  # made zeros again wherever the kernel writes what was rejected
            zeros.index_put_((parent_row, drafted), zero)
            more = (zeros.view_as(probs),)
        rule(*common, coins, final_coins, probs, *more, threshold_single=1.0, threshold_acc=1.0)

    return Verifier(sampled, lambda: accepted)


def build_flashinfer(drafts: Drafts) -> Verifier:
    """FlashInfer's `chain_speculative_sampling`.

    Raises:
        Skip: where it cannot run.
    """
    sampling = need(drafts, "flashinfer.sampling", "chain_speculative_sampling")
    if drafts.temperature == 0:
        raise Skip("has no greedy verification")
    b, n, drafted = drafts.chains()
    vocab_size = drafts.logits.shape[1]
    one_hot = torch.zeros(b, n - 1, vocab_size, device=drafts.logits.device)
    one_hot.scatter_(2, drafted[..., None].long(), 1.0)
    counts = drafts.empty(2, b, dtype=torch.int32)  # added to: accepted on their own, emitted
    softmax = getattr(sampling, "softmax", None)
    probabilities = drafts.probabilities(sampling.top_p_renorm_probs, softmax)
    random = {}
    if "seed" in parameters(sampling.chain_speculative_sampling):
        # On the device, or a graph would replay the same random numbers.
        zeros = torch.zeros(2, 1, dtype=torch.int64, device=drafts.logits.device)
        random = {"seed": zeros[0], "offset": zeros[1]}

    def run() -> torch.Tensor:
        probs = probabilities().view(b, n, vocab_size)
        counts.zero_()
        if random:
            random["offset"].add_(4 * n)
        return sampling.chain_speculative_sampling(
            one_hot, drafted, probs, counts[0], counts[1], **random
        )[0]

    return Verifier(run, lambda: counts[1])


def build_vllm(drafts: Drafts) -> Verifier:
    """vLLM's `rejection_sample` of `v1.sample.rejection_sampler`, with its top-p.

    Raises:
        Skip: where it cannot run.
    """
    names = ("rejection_sample", "apply_top_k_top_p")
    sampler = need(drafts, "vllm.v1.sample.rejection_sampler", *names)
    b, n, drafted = drafts.chains()
    logits, greedy = drafts.logits.view(b, n, -1), drafts.temperature == 0
    vocab_size = logits.shape[2]
    # Rows of drafts and, behind them, the rows of the last tokens: two dense blocks.
    dtype = logits.dtype if greedy else torch.float32
    rows = drafts.empty(b * n, vocab_size, dtype=dtype)
    target, bonus = rows[: b * (n - 1)], rows[b * (n - 1) :]
    from_logits = "target_logits" in parameters(sampler.rejection_sample)
    probs, noise = torch.empty_like(target), torch.empty_like(bonus)
    top_p = drafts.empty(b * n).fill_(drafts.top_p)
    # All of the sampling metadata that is read.
    metadata = SimpleNamespace(
        all_greedy=greedy,
        all_random=not greedy,
        temperature=drafts.empty(b).fill_(drafts.temperature),
        generators={},
    )
    counts, ends = [n - 1] * b, drafts.tree.to_vllm()
    out = [torch.empty(0)]

    def run() -> None:
        if greedy:
            target.view(b, n - 1, vocab_size).copy_(logits[:, :-1])
            last = torch.argmax(logits[:, -1], -1, keepdim=True)
            given = target
        else:
            drafts.scaled(logits[:, :-1], target.view(b, n - 1, vocab_size))
            drafts.scaled(logits[:, -1], bonus)
            kept = rows
            if drafts.top_p < 1:
                kept = sampler.apply_top_k_top_p(rows, None, top_p)
            last = torch.softmax(kept[b * (n - 1) :], -1).div_(noise.exponential_())
            last = last.argmax(-1, keepdim=True)
            given = kept[: b * (n - 1)]
            if not from_logits:
                given = torch.softmax(given, -1, out=probs)
        out[0] = sampler.rejection_sample(
            drafted.view(-1), counts, n - 1, ends, None, given, last.int(), metadata
        )

    return Verifier(run, lambda: (out[0] >= 0).sum(1) - 1)


def build_vllm_from_logits(drafts: Drafts) -> Verifier:
    """vLLM's newer `rejection_sample` of `v1.worker.gpu.spec_decode`, which reads logits.

    Raises:
        Skip: where it cannot run.
    """
    module = "vllm.v1.worker.gpu.spec_decode.rejection_sampler_utils"
    sampler = need(drafts, module, "rejection_sample")
    b, n, _ = drafts.chains()
    place = torch.arange(b * n, device=drafts.logits.device)
    request, step = (place // n).int(), (place % n).int()
    needs_copy = drafts.temperature not in (0, 1) or drafts.top_p < 1
    rows = drafts.empty(*drafts.logits.shape) if needs_copy else drafts.logits
    filters = None
    if drafts.top_p < 1:
        filters = need(drafts, "vllm.v1.sample.ops.topk_topp_sampler", "apply_top_k_top_p")
    top_p = drafts.empty(b * n).fill_(drafts.top_p)
    fixed = (
        None,  # no draft logits: the drafts were chosen
        drafts.tokens,
        drafts.tree.cu_nodes,
        step.long(),  # positions, which key the random numbers
        torch.arange(b, dtype=torch.int32, device=rows.device),
        request,
        step,
        drafts.empty(b).fill_(drafts.temperature),
        torch.zeros(b, dtype=torch.int64, device=rows.device),
        n - 1,
    )
    out = [torch.empty(0)] * 2

    def run() -> None:
        given = drafts.scaled(drafts.logits, rows) if needs_copy else rows
        if filters is not None:
            given = filters.apply_top_k_top_p(given, None, top_p)
        out[:] = sampler.rejection_sample(given, *fixed)

    return Verifier(run, lambda: out[1] - 1)


PEERS = {
    "SGLang": build_sglang,
    "FlashInfer": build_flashinfer,
    "vLLM": build_vllm,
    "vLLM from logits": build_vllm_from_logits,
}
TREE_PEERS = {"SGLang"}
"""Those that verify trees; the others verify chains."""
