"""Generation: every growing branch of every problem takes a token in each step."""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ttc_kernels.verify import DESCRIPTOR_COLUMNS, row_descriptor, sample_tokens
from ttc_runtime.branch import Branch
from ttc_runtime.budget import Account
from ttc_runtime.lane import Lane
from ttc_runtime.models import PagedModel
from ttc_runtime.sampling import SamplingParams, TextEnds, completes
from ttc_runtime.search import Generate, Search
from ttc_runtime.sequence import Ledger, Sequence

if TYPE_CHECKING:
    from ttc_runtime.speculation import Speculator


class _Growth:
    """A branch that is growing, and when it stops. account: of the strand that it grows for. room:
    tokens it may take before it has to ask for more. held: it waits until others leave it memory.
    """

    __slots__ = (
        "account",
        "bias",
        "branch",
        "cut",
        "ends",
        "held",
        "limit",
        "room",
        "sampling",
        "score",
        "search",
        "seed",
        "sequence",
        "until_step",
    )

    def __init__(
        self, branch: Branch, sequence: Sequence, work: Generate, ends: TextEnds, limit: int
    ) -> None:
        self.branch, self.search, self.sequence = branch, branch.search, sequence
        self.seed, self.sampling, self.until_step = branch.seed, work.sampling, work.until_step
        self.bias, self.score, self.ends, self.held = work.bias, work.score, ends, False
        self.account = branch.search.account
        self.room = 0 if self.account.tokens is not None else sys.maxsize
        cut = limit if work.new_tokens is None else len(self.sequence.tokens) + work.new_tokens
        self.limit, self.cut = min(limit, cut), cut < limit


class Policy:
    """The model that generates.

    model: with pages allocated. tokenizer: its own. separator: the string that closes a step. name:
    empty for an engine's first policy. peers: of that one, others by name, with its tokenizer.
    speculator: drafts tokens that a pass verifies, or None.
    """

    def __init__(
        self,
        model: PagedModel,
        tokenizer,
        separator: str,
        name: str = "",
        speculator: Speculator | None = None,
    ) -> None:
        self.name, self.peers = name, dict[str, Policy]()
        self.lane, self.tokenizer, self.separator = Lane(model), tokenizer, separator
        self.speculator = speculator
        configured = getattr(model.model.generation_config, "eos_token_id", None)
        eos = configured if configured is not None else model.config.eos_token_id
        ids = eos if isinstance(eos, list) else [eos]
        self._eos = np.array([i for i in {*ids, tokenizer.eos_token_id} if i is not None], np.int64)
        self._ends: dict[tuple[str, ...], TextEnds] = {}
        self._decoding: list[_Growth] = []
        self._waiting: list[_Growth] = []

    def encode_prompt(self, problem: str) -> list[int]:
        """Token ids of a problem, through the chat template where the tokenizer has one."""
        if self.tokenizer.chat_template:
            messages = [{"role": "user", "content": problem}]
            text = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False
            )
            return self.encode(text)
        return self.tokenizer(problem)["input_ids"]

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(self, token_ids: list[int]) -> str:
        return self.tokenizer.decode(token_ids, skip_special_tokens=True)

    @property
    def num_growing(self) -> int:
        return len(self._decoding) + len(self._waiting)

    def ledger(self, search: Search) -> Ledger:
        return search.ledger(self.name)

    def submit(self, work: Generate) -> None:
        """Start growing the work's unfinished branches; they leave `search.running` when done."""
        ends = self._ends.get(work.sampling.stop)
        if ends is None:
            strings = (*work.sampling.stop, self.separator)
            ends = TextEnds(self.tokenizer, strings, self.lane.model.vocab_size)
            self._ends[work.sampling.stop] = ends
        for branch in work.branches:
            if branch.finished:
                if work.score:
                    self._score(branch, branch.search.account)
                continue
            search, account = branch.search, branch.search.account
            first = len(branch.sequence.tokens) == branch.prompt_tokens
            if search.out_of_budget or (first and account.samples == 0):
                branch.stop_reason, account.hit = "budget", True
                continue
            branch.stop_reason = None
            limit = min(
                branch.prompt_tokens + work.sampling.max_tokens, self.lane.model.max_positions
            )
            growth = _Growth(branch, branch.on(self.name), work, ends, limit)
            if len(branch.sequence.tokens) >= limit:
                self._stop(growth, self._length_reason(growth))
                continue
            search.usage.samples += first
            if account.samples is not None:
                account.samples -= first
            search.running.add(branch)
            self._waiting.append(growth)

    def step(self) -> bool:
        """Grow every branch by a token. Returns False if there was nothing to do.

        Raises OutOfPages if nothing could run; calling again after pages were freed goes on.
        """
        self._enforce_budgets()
        ready, prefill, parents = self._admit()
        if ready:
            self._settle_children(ready)
            kept = [g.sequence.logits for g in ready if g.sequence.logits is not None]
            self._sample(torch.stack(kept), ready)
            self._decoding += [g for g in ready if g.branch.stop_reason is None]
            self._enforce_budgets()
        if not self._decoding and not prefill:
            return bool(ready)
        plain, ahead = self._decoding, []
        if self.speculator is not None and self._decoding:
            plain, grown = self.speculator.step(self, self._decoding)
            ahead = [g for g in grown if g.branch.stop_reason is None]
            self._decoding = plain + ahead
        if not plain and not prefill:
            return True
        decode = [g.sequence for g in plain]
        logits, ran = self.lane.run(decode, prefill)
        owners = {id(g.sequence): g for g in self._waiting}
        complete = [s for s in ran if s.pending == 0]
        joining = [owners[id(s)] for s in complete if id(s) in owners]
        grown = plain + joining
        parents |= {id(g.sequence) for g in grown if g.branch.children}
        for row, sequence in enumerate(decode + complete):
            if id(sequence) in parents:
                sequence.logits = logits[row].clone()
        if not grown:
            return True
        if len(joining) < len(complete):  # some rows were prompts that only children sample from
            rows = [len(decode) + i for i, s in enumerate(complete) if id(s) in owners]
            logits = logits[torch.tensor([*range(len(decode)), *rows])]
        if joining:
            joined = {id(g) for g in joining}
            self._waiting = [g for g in self._waiting if id(g) not in joined]
        self._decoding = grown + ahead
        self._settle_children(grown)
        self._sample(logits, grown)
        self._decoding = [g for g in self._decoding if g.branch.stop_reason is None]
        return True

    def _settle_children(self, growths: list[_Growth]) -> None:
        """Let children that were forked here take over pages and outputs before the parent goes on,
        or they would have to run its last token again."""
        for growth in growths:
            for child in growth.branch.children:
                sequence = child.sequences.get(self.name)
                if sequence is None:
                    continue
                at_tip = len(sequence.tokens) == sequence.fork_len == growth.sequence.length
                if at_tip and sequence.kv is None and not child.freed:
                    self.lane.prepare(sequence, sampled=True)

    def _admit(self) -> tuple[list[_Growth], list[Sequence], set[int]]:
        """Sort waiting branches: those with logits to sample from, sequences to prefill, parents
        whose outputs children wait for; those with one token to run join the decoding ones."""
        ready, waiting, prefill, parents = [], [], {}, set()
        decoding = {id(g.sequence) for g in self._decoding} if self._waiting else set()
        for growth in self._waiting:
            sequence = growth.sequence
            if sequence.kv is not None and sequence.pending == 0 and sequence.logits is None:
                self.lane.release(sequence)  # it came back for a child's sake, without its output
            at_rest = growth.held or growth.search.paused or not growth.room
            target = None if at_rest else self.lane.prepare(sequence, sampled=True)
            if target is sequence and sequence.pending == 0:
                ready.append(growth)
            elif target is sequence and sequence.pending == 1:
                self._decoding.append(growth)
                decoding.add(id(sequence))
            else:
                waiting.append(growth)
                if target is not None and target is not sequence:
                    parents.add(id(target))
                if target is not None:
                    prefill[id(target)] = target
        self._waiting = waiting
        return ready, [s for key, s in prefill.items() if key not in decoding], parents

    def _sample(self, logits: Tensor, growths: list[_Growth]) -> None:
        """Append a token to each growth from its row of logits, and stop those that are done."""
        started, count = time.perf_counter(), len(growths)
        seeds = np.fromiter((g.seed for g in growths), np.int64, count)
        positions = np.fromiter((len(g.sequence.tokens) for g in growths), np.int64, count)
        logits = _biased(logits, growths)
        desc = row_descriptor(logits, **_sampling_arguments(growths))
        drawn = sample_tokens(logits, desc, torch.from_numpy(seeds), torch.from_numpy(positions))
        logprobs = _logprobs(logits, desc, drawn)
        # Read together: the only time in a step that the host waits for a GPU.
        ids, bits = torch.stack((drawn, logprobs.view(torch.int32))).cpu().numpy()
        if (ids < 0).any():
            for growth in (growths[i] for i in np.flatnonzero(ids < 0)):
                branch = growth.branch
                growth.search.failure = f"policy: the logits of branch {branch.path} are not finite"
            ids = np.where(ids < 0, 0, ids)  # its problem ends with this step
        limits = np.fromiter((g.limit for g in growths), np.int64, count)
        events = (positions + 1 >= limits) | (ids[:, None] == self._eos).any(1)
        for ends in {g.ends for g in growths}:
            events |= ends.candidates(ids) & np.array([g.ends is ends for g in growths])
        for growth, token, logprob in zip(
            growths, ids.tolist(), bits.view(np.float32).tolist(), strict=True
        ):
            growth.sequence.tokens.append(token)
            growth.branch.logprobs.append(logprob)
            growth.room -= 1
        share = (time.perf_counter() - started) / count
        for search, number in Counter(g.search for g in growths).items():
            search.usage.generated += number
            search.sample_seconds += share * number
        for i in np.flatnonzero(events):
            self._end_if_done(growths[i])

    def take(self, growth: _Growth, tokens: list[int], logprobs: list[float]) -> int:
        """Append tokens to a growth until one of them stops it. Returns how many it took."""
        maybe = growth.ends.candidates(np.array(tokens))
        for count, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True), 1):
            growth.sequence.tokens.append(token)
            growth.branch.logprobs.append(logprob)
            growth.room -= 1
            growth.search.usage.generated += 1
            full = len(growth.sequence.tokens) >= growth.limit
            if full or maybe[count - 1] or token in self._eos:
                self._end_if_done(growth)
            if growth.branch.stop_reason is not None:
                return count
        return len(tokens)

    def _end_if_done(self, growth: _Growth) -> None:
        branch, tokens = growth.branch, growth.sequence.tokens
        if tokens[-1] in self._eos:
            return self._stop(growth, "eos")
        if completes(self.tokenizer, branch.tokens, growth.sampling.stop):
            return self._stop(growth, "stop")
        closed = branch.close_step()
        full = len(tokens) >= growth.limit
        if full and not growth.cut:
            self._stop(growth, self._length_reason(growth))
        elif growth.until_step and (closed or full):
            branch.close_step(at_end=True)
            self._stop(growth, "step")
        elif full:
            self._stop(growth, "pause")

    def _length_reason(self, growth: _Growth) -> str:
        full = len(growth.sequence.tokens) >= self.lane.model.max_positions
        return "context" if full else "length"

    def _stop(self, growth: _Growth, reason: str) -> None:
        growth.branch.stop_reason = reason
        if reason not in ("step", "pause"):
            growth.branch.close_step(at_end=True)
        growth.search.running.discard(growth.branch)
        account = growth.account
        account.hit |= reason == "budget"
        if account.tokens is not None:
            account.tokens += growth.room
        if growth.score:
            self._score(growth.branch, account)
        if growth.held:
            growth.held = False
            growth.search.held -= 1
        self.let_go(growth.search)

    def _score(self, branch: Branch, account: Account) -> None:
        """Hand a branch to the reward model while others still grow."""
        search = branch.search
        if search.scorer is None:
            raise ValueError("Generate: score=True needs an engine with a reward model")
        try:
            search.scorer.add(branch, account)
        except ValueError as error:
            search.failure = str(error)

    def _enforce_budgets(self) -> None:
        """Give a strand's branches more of its tokens once they have used up what they had, to each
        as many, and stop those for which there are none. Branches that wait for what other strands
        may leave take no part in steps."""
        limited: dict[Account, list[_Growth]] = {}
        stopped = False
        for growth in (*self._decoding, *self._waiting):
            budget = growth.search.budget
            if budget.seconds is not None and growth.search.remaining_seconds <= 0:
                self._stop(growth, "budget")
                stopped = True
            elif budget.tokens is not None:
                limited.setdefault(growth.account, []).append(growth)
        for account, growths in limited.items():
            left = None if any(g.room for g in growths) else account.grant(len(growths))
            if left is None:
                continue
            each = left // len(growths)
            for i, growth in enumerate(sorted(growths, key=lambda g: g.branch.places)):
                growth.room = each or int(i < left)
                account.tokens -= growth.room  # type: ignore[operator]
                if growth.room == 0:
                    self._stop(growth, "budget")
        if limited or stopped:
            self._waiting += [g for g in self._decoding if not g.room]
            self._waiting = [g for g in self._waiting if g.branch.stop_reason is None]
            self._decoding = [g for g in self._decoding if g.room and g.branch.stop_reason is None]

    def ahead(self, search: Search) -> int:
        """Tokens that a problem's growing branches may still take."""
        growing = (g for g in (*self._decoding, *self._waiting) if g.search is search)
        return sum(g.limit - g.sequence.length for g in growing)

    def active(self) -> set[int]:
        """Ids of the sequences that are growing, or that a waiting branch is to continue."""
        waiting = [g for g in self._waiting if g.room and not g.held]
        parents = {id(g.sequence.parent) for g in waiting if g.sequence.kv is None}
        return {id(g.sequence) for g in (*self._decoding, *waiting)} | parents

    def hold(self, search: Search) -> bool:
        """Take the pages of the growing branch that is worth least, until others have stopped.

        Returns False, and does nothing, where only one is left to grow.
        """
        growing = [g for g in (*self._decoding, *self._waiting) if g.search is search]
        free = [g for g in growing if g.room and not g.held]
        if len(free) < 2:
            return False
        # Of equals the last goes first, so that the same ones always get through.
        least = min(g.branch.rank for g in free)
        victim = max((g for g in free if g.branch.rank == least), key=lambda g: g.branch.places)
        victim.held = True
        search.held += 1
        if victim in self._decoding:
            self._decoding.remove(victim)
            self._waiting.append(victim)
        self.lane.release(victim.sequence)
        return True

    def let_go(self, search: Search) -> bool:
        """Let the held branch that is worth most go on. False if there is none."""
        held = [g for g in self._waiting if g.held and g.search is search] if search.held else []
        if not held:
            return False
        best = max(g.branch.rank for g in held)
        chosen = min((g for g in held if g.branch.rank == best), key=lambda g: g.branch.places)
        chosen.held = False
        search.held -= 1
        return True

    def preempt(self, search: Search) -> None:
        """Give up all of a problem's pages; its growing branches start again from their tokens."""
        self._waiting += [g for g in self._decoding if g.search is search]
        self._decoding = [g for g in self._decoding if g.search is not search]
        self.lane.release_all(list(self.ledger(search).attached.values()))

    def cancel(self, search: Search) -> None:
        """Forget a problem's work."""
        self._decoding = [g for g in self._decoding if g.search is not search]
        self._waiting = [g for g in self._waiting if g.search is not search]


def _sampling_arguments(growths: list[_Growth]) -> dict:
    """Filters for `row_descriptor`: numbers if all rows agree, as they mostly do, else tensors."""
    first: SamplingParams = growths[0].sampling
    names = {
        "temperature": torch.float32,
        "top_k": torch.int32,
        "top_p": torch.float32,
        "min_p": torch.float32,
    }
    if all(g.sampling is first for g in growths):
        return {name: getattr(first, name) for name in names}
    return {
        name: torch.tensor([getattr(g.sampling, name) for g in growths], dtype=dtype)
        for name, dtype in names.items()
    }


def _biased(logits: Tensor, growths: list[_Growth]) -> Tensor:
    """The logits with what the growths' bias functions add to them."""
    rows: list[int] = []
    ids: list[int] = []
    amounts: list[float] = []
    for row, growth in enumerate(growths):
        found = growth.bias(growth.branch) if growth.bias is not None else None
        if found is not None:
            rows += [row] * len(found[0])
            ids += found[0]
            amounts += [found[1]] * len(found[0])
    if not rows:
        return logits
    where = torch.tensor(rows, device=logits.device), torch.tensor(ids, device=logits.device)
    values = torch.tensor(amounts, dtype=logits.dtype, device=logits.device)
    return logits.clone().index_put_(where, values, accumulate=True)


def _logprobs(logits: Tensor, desc: Tensor, drawn: Tensor) -> Tensor:
    """float32[N]: log-probability of each drawn token under its row's filtered distribution."""
    column = {name: desc[:, i] for i, name in enumerate(DESCRIPTOR_COLUMNS)}
    chosen = logits.gather(1, drawn[:, None].long().clamp(min=0))[:, 0].float()
    scaled = (chosen - column["max"]) / column["temperature"] - column["log_z"]
    return torch.where(column["temperature"] == 0, 0.0, scaled)  # greedy draws are certain
