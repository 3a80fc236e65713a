"""The engine: models, memory and the scheduler behind `solve` and `solve_all`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ttc_runtime.answers import extractor_for
from ttc_runtime.budget import Budget
from ttc_runtime.generation import Policy
from ttc_runtime.loading import CAUSAL_LM, load_tokenizer, model_directory
from ttc_runtime.models import PagedModel
from ttc_runtime.result import Result, make_result
from ttc_runtime.rewards import RewardModel
from ttc_runtime.scheduler import Scheduler, Task
from ttc_runtime.scoring import Scorer
from ttc_runtime.search import Search
from ttc_runtime.speculation import (
    Drafter,
    ModelDrafter,
    NgramDrafter,
    Speculation,
    Speculator,
)
from ttc_runtime.strategies import Strategy

_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def parse_bytes(size: int | str) -> int:
    """A size in bytes from a number or a text such as ``512MiB``. Raises ValueError.

    >>> parse_bytes("1.5KiB")
    1536
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]i?B|B)?\s*", str(size))
    if match is None or float(match[1]) <= 0:
        raise ValueError(f"kv_memory: expected bytes or a text such as '1GiB', got {size!r}")
    return int(float(match[1]) * _UNITS[match[2] or "B"])


class Engine:
    """Solves problems with a policy, and a reward model if one is given.

    policy: the model that generates, its pages allocated. reward: scores its steps. extract:
    function that takes the answer from a solution's text. max_batch: growing branches above which
    no further problem starts. Made by `from_pretrained`.
    """

    def __init__(self, policy: Policy, reward: RewardModel | None, extract, max_batch: int) -> None:
        self.policy, self.reward, self.extract = policy, reward, extract
        self.scorer = Scorer(reward) if reward else None
        self.max_batch = max_batch

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        reward: str | Path | RewardModel | None = None,
        draft: str | Path | None = None,
        *,
        speculate: str | Speculation | None = None,
        device="auto",
        backend="auto",
        dtype="auto",
        kv_memory: int | str = "1GiB",
        page_size: int = 16,
        deterministic: bool = True,
        row_block: int = 64,
        step_separator: str | None = None,
        max_batch: int = 256,
        policies: Mapping[str, str | Path] | None = None,
    ) -> Engine:
        """Load models from local directories; the network is never asked.

        model, reward: Hugging Face directories or ``zoo:NAME``, the reward also a `RewardModel`.
        draft: a small model with the same vocabulary, whose guesses every policy verifies; the
        text does not depend on it. speculate: how to draft, a `Speculation` or a text such as
        ``tree:16``, ``chain:4`` (the default where there is a draft), ``ngram:8`` (needs no draft)
        or ``none``. device: ``cpu``, ``cuda``, or ``auto``, a GPU if there is one. backend: of the
        attention: ``cpu``, ``triton``, or ``auto``, that of the device. dtype: ``auto`` (bfloat16
        and float32 checkpoints as they are, float16 as float32 on a CPU) or a torch dtype.
        kv_memory: bytes for the key/value caches of all models together, a number or such as
        ``1GiB``. page_size: tokens to a page: 1, 8, 16,
        32, 64 or 128. deterministic: the same seed gives the same tree whatever runs beside it.
        row_block: rows to a matrix product then. step_separator: text that closes a step, by
        default a newline for the zoo and a blank line otherwise. max_batch: growing branches above
        which no further problem starts. policies: more models with the same tokenizer, by names
        that `Generate` may ask for. Raises ValueError naming what cannot be used.

        >>> engine = Engine.from_pretrained("zoo:arith-small")         # doctest: +SKIP
        """
        if isinstance(speculate, str):
            speculate = Speculation.parse(speculate)
        if speculate is None:
            speculate = Speculation("chain") if draft is not None else Speculation("none")
        if speculate.kind in ("chain", "tree") and draft is None:
            raise ValueError(f"Engine: speculate={speculate.kind!r} needs a draft model, got none")
        if max_batch < 1:
            raise ValueError(f"Engine: max_batch must be >= 1, got {max_batch!r}")
        is_zoo = str(model).startswith("zoo:")
        separator = step_separator or ("\n" if is_zoo else "\n\n")
        memory = parse_bytes(kv_memory)
        shared = {
            "device": device,
            "backend": backend,
            "dtype": dtype,
            "page_size": page_size,
            "deterministic": deterministic,
            "row_block": row_block,
        }
        path = model_directory(model)
        paged = PagedModel(path, CAUSAL_LM, **shared)
        tokenizer = load_tokenizer(path)
        if reward is not None and not isinstance(reward, RewardModel):
            reward = RewardModel.from_pretrained(reward, **shared)
        drafting = None
        if draft is not None and speculate.kind in ("chain", "tree"):
            # Guesses may round as they like: the text is the policy's.
            loose = {**shared, "deterministic": False}
            drafting = PagedModel(model_directory(draft), CAUSAL_LM, **loose)
            _check_vocabulary(str(draft), tokenizer, load_tokenizer(model_directory(draft)))
        # All models see the same text, so each gets the same number of pages.
        page_bytes = paged.page_bytes + (reward.model.page_bytes if reward else 0)
        peers = {
            name: _load_peer(name, d, tokenizer, shared) for name, d in (policies or {}).items()
        }
        page_bytes += sum(peer.page_bytes for peer in peers.values())
        page_bytes += drafting.page_bytes if drafting else 0
        num_pages = memory // page_bytes
        if num_pages < 1:
            raise ValueError(
                f"Engine: kv_memory of {memory} bytes is less than the {page_bytes} "
                f"of one page of {page_size} tokens"
            )
        for each in (paged, *peers.values()):
            each.allocate(num_pages)
        if reward is not None:
            reward.model.allocate(num_pages)
        drafter: Drafter | None = NgramDrafter() if speculate.kind == "ngram" else None
        if drafting is not None:
            drafting.allocate(num_pages)
            drafter = ModelDrafter(drafting, as_tree=speculate.kind == "tree")

        def policy_of(each: PagedModel, name: str) -> Policy:
            weights = drafting.num_weights if drafting is not None else 0
            speculator = None if drafter is None else Speculator(speculate, drafter, weights)
            return Policy(each, tokenizer, separator, name, speculator)

        policy = policy_of(paged, "")
        policy.peers = {name: policy_of(peer, name) for name, peer in peers.items()}
        return cls(policy, reward, extractor_for(str(model)), max_batch)

    def solve(
        self, problem: str, strategy: Strategy, budget: Budget | None = None, seed: int = 0
    ) -> Result:
        """Solve one problem.

        problem: its text. strategy: such as ``BestOfN(16)``. budget: limits of the whole tree.
        seed: of all randomness. Raises ValueError for what cannot be solved at all, such as a
        prompt longer than the context.

        >>> engine.solve("17+25*3=\\n", BestOfN(16)).answer            # doctest: +SKIP
        '126'
        """
        result = next(self.stream([{"id": 0, "problem": problem}], strategy, budget, seed))
        if result.error is not None:
            raise ValueError(result.error) from result.exception
        return result

    def solve_all(
        self,
        problems: Iterable[str | dict],
        strategy: Strategy,
        budget: Budget | None = None,
        seed: int = 0,
        progress: bool = False,
    ) -> list[Result]:
        """Solve many problems together; results in the problems' order.

        problems: texts, or dicts with ``problem`` and optionally ``id`` and ``answer``. budget: of
        each problem. progress: show a bar. A problem that fails has ``error`` set and does not stop
        the others.
        """
        if isinstance(problems, str | dict):
            kind = type(problems).__name__
            raise TypeError(f"problems: expected a list of them, got one {kind}; solve takes one")
        records = [
            p if isinstance(p, dict) else {"id": i, "problem": p} for i, p in enumerate(problems)
        ]
        results: Iterable[Result] = self.stream(records, strategy, budget, seed)
        if progress:
            from rich.progress import track

            results = track(results, total=len(records), description=strategy.name)
        return sorted(results, key=lambda result: result.index)

    def graph_report(self) -> dict[str, dict[str, str]]:
        """For each model how its passes run: by kind "graph", or "eager" and why.

        >>> Engine.from_pretrained("zoo:arith-small", device="cpu").graph_report()
        {'policy': {'all': 'eager: the cpu backend has no graphs'}}
        """
        models = {"policy": self.policy.lane.model}
        models |= {f"policy {n}": peer.lane.model for n, peer in self.policy.peers.items()}
        if self.reward is not None:
            models["reward"] = self.reward.model
        return {name: model.runner.report() for name, model in models.items()}

    def clear_cache(self) -> None:
        """Forget the prompts kept from earlier problems and free their pages."""
        for lane in (self.policy, *self.policy.peers.values(), self.scorer):
            while lane is not None and lane.lane.cache.evict():
                pass
        if self.policy.speculator is not None:
            self.policy.speculator.drafter.forget_all()

    def stream(
        self,
        records: Iterable[dict],
        strategy: Strategy,
        budget: Budget | None = None,
        seed: int = 0,
    ) -> Iterator[Result]:
        """Like `solve_all`, but yields each result as soon as it is there, in any order.

        Raises TypeError for what is no strategy or budget.
        """
        if isinstance(strategy, type) or not callable(getattr(strategy, "run", None)):
            raise TypeError(
                f"strategy: expected an object such as BestOfN(16), got {strategy!r}; "
                f"make_strategy makes one of a name"
            )
        if budget is not None and not isinstance(budget, Budget):
            raise TypeError(f"budget: expected a Budget, got {budget!r}")
        limits = budget or Budget()
        checked = [_check_record(i, record) for i, record in enumerate(records)]

        def starter(record: dict):
            def start():
                search = Search(
                    record["problem"], self.policy, self.scorer, limits, seed, self.extract
                )
                return search, strategy.run(search)

            return start

        tasks = (Task(i, starter(record)) for i, record in enumerate(checked))
        for task in Scheduler(self.policy, self.scorer, self.max_batch).run(tasks):
            aggregation = self.reward.spec.aggregation if self.reward else "last"
            yield make_result(task, checked[task.index], strategy, seed, self.extract, aggregation)


def _load_peer(name: str, directory: str | Path, tokenizer, shared: dict) -> PagedModel:
    """Another policy's model. Raises ValueError unless it reads the same token ids."""
    path = model_directory(directory)
    other = load_tokenizer(path)
    mine, theirs = tokenizer.get_vocab(), other.get_vocab()
    differing = sum(theirs.get(token) != i for token, i in mine.items())
    if not name or differing or len(mine) != len(theirs):
        raise ValueError(
            f"Engine: policies[{name!r}] must have a name and the tokenizer of the model, but of "
            f"{len(mine)} tokens {differing} are others in {str(directory)!r}, which has "
            f"{len(theirs)}; branches could not go from one policy to the other"
        )
    return PagedModel(path, CAUSAL_LM, **shared)


def _check_vocabulary(draft: str, policy, drafting) -> None:
    if policy.get_vocab() != drafting.get_vocab():
        raise ValueError(
            f"Engine: the draft model must have the policy's vocabulary, got {draft} with "
            f"{len(drafting)} tokens beside {len(policy)}"
        )


def _check_record(index: int, record: dict) -> dict:
    if not isinstance(record.get("problem"), str) or not record["problem"]:
        raise ValueError(
            f"problems: entry {index} needs a non-empty text 'problem', "
            f"got {record.get('problem')!r}"
        )
    return {"id": index, **record}
