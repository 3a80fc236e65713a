"""What scoring a whole beam search costs: incrementally, and by re-running every beam each step.

Both sides score the same search with the same model: `width` beams, `depth` steps of 60 tokens
behind a prompt of 200, the best quarter kept and forked after each. Re-scoring runs the text of
every beam through transformers each step, in batches of 8, as public beam-search scripts do. Each
side runs in a process of its own, for its peak memory.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch

from . import machine

PROMPT, STEP = 200, 60  # tokens
_HIDDEN, _LAYERS = 256, 4
_BATCH = 8


def save_model(directory: Path) -> None:
    """A random reward model in TRL's layout, with the zoo's tokenizer: one token a character."""
    from transformers import LlamaConfig, LlamaForTokenClassification
    from ttc_runtime.zoo import specs

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(specs.VOCAB),
        hidden_size=_HIDDEN,
        intermediate_size=2 * _HIDDEN,
        num_hidden_layers=_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=4096,
        num_labels=2,
        pad_token_id=specs.PAD_ID,
        eos_token_id=specs.EOS_ID,
        bos_token_id=None,
    )
    model = LlamaForTokenClassification(config)
    model.score.weight.data.mul_(20)  # or all scores are about one half
    model.save_pretrained(directory)
    specs.save_tokenizer(directory)


def texts(width: int, seed: int = 0):
    """A problem, and a function of (depth, beam) that gives a step."""
    rng = random.Random(seed)
    problem = "".join(rng.choice("0123456789") for _ in range(PROMPT))

    def step(depth: int, beam: int) -> str:
        draw = random.Random(f"{seed}/{depth}/{beam}")
        return "".join(draw.choice("0123456789+-*=") for _ in range(STEP - 1))

    return problem, step


def survivors(scores: list[float], width: int) -> list[int]:
    """Parents of the next round's beams: the best quarter, four times each."""
    ranked = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[: max(1, width // 4)]
    return [parent for parent in ranked for _ in range(width // len(ranked))]


def incremental(directory: Path, width: int, depth: int) -> dict:
    """Through `Scorer`: new steps on top of cached pages."""
    from ttc_runtime import Budget, RewardModel, Score
    from ttc_runtime.scoring import Scorer
    from ttc_runtime.search import Search

    reward = RewardModel.from_pretrained(directory, device="cpu", deterministic=False)
    reward.model.allocate(width * (depth + 2) * (STEP // reward.model.page_size + 2) + 64)
    scorer, (problem, step) = Scorer(reward), texts(width)
    lane = SimpleNamespace(model=SimpleNamespace(max_positions=10**6, num_weights=0))
    lane.release = lane.release_all = lambda sequences: None
    policy = SimpleNamespace(separator="\n", encode_prompt=lambda text: [1], lane=lane)
    search = Search(problem, policy, scorer, Budget(), 0)  # type: ignore[arg-type]
    started = time.perf_counter()
    beams = search.root.fork(width)
    for d in range(depth):
        for i, beam in enumerate(beams):
            beam.steps.append(step(d, i))
            beam.sequence.tokens.append(1)
            beam.step_starts.append(len(beam.sequence.tokens))
        scorer.submit(Score(beams))
        while search.running:
            scorer.step(idle=True)
        last = [beam.step_scores[-1] for beam in beams]
        if d + 1 < depth:
            parents = survivors(last, width)
            children = [beams[parent].fork(1)[0] for parent in parents]
            for i, beam in enumerate(beams):
                if i not in parents:
                    beam.free()
            beams = children
    seconds = time.perf_counter() - started
    usage = search.close()
    return {
        "tokens": usage.scored,
        "recomputed": usage.recomputed,
        "seconds": seconds,
        "scores": last,
        "peak_rss": machine.peak_rss_bytes(),
    }


@torch.inference_mode()
def rescoring(directory: Path, width: int, depth: int) -> dict:
    """By plain transformers: every beam's whole text, each step."""
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    model = AutoModelForTokenClassification.from_pretrained(directory).eval()
    tokenizer, (problem, step) = AutoTokenizer.from_pretrained(directory), texts(width)
    started, tokens = time.perf_counter(), 0
    beams = [problem] * width
    for d in range(depth):
        beams = [text + step(d, i) + "\n" for i, text in enumerate(beams)]
        last: list[float] = []
        for start in range(0, width, _BATCH):
            ids = tokenizer(beams[start : start + _BATCH], return_tensors="pt")["input_ids"]
            tokens += ids.numel()
            logits = model(input_ids=ids, use_cache=False).logits
            last += logits[:, -1].float().softmax(-1)[:, 1].tolist()
        if d + 1 < depth:
            beams = [beams[parent] for parent in survivors(last, width)]
    return {
        "tokens": tokens,
        "recomputed": None,
        "seconds": time.perf_counter() - started,
        "scores": last,
        "peak_rss": machine.peak_rss_bytes(),
    }


def compare(width: int, depth: int) -> dict:
    """Run both in turn and print what they cost. Raises RuntimeError if their scores differ."""
    found: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as directory:
        save_model(Path(directory))
        for side in ("incremental", "rescoring"):
            command = [sys.executable, "-m", "bench.step_score_search", side, directory]
            command += [str(width), str(depth), str(torch.get_num_threads())]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[side] = json.loads(done.stdout.splitlines()[-1])
    ours, theirs = found["incremental"], found["rescoring"]
    worst = max(abs(a - b) for a, b in zip(ours["scores"], theirs["scores"], strict=True))
    if worst > 1e-4:
        raise RuntimeError(f"step_score_search: the scores of the two sides differ by {worst}")
    unique = PROMPT + width * depth * STEP
    report = {
        "dtype": "float32",
        "width": width,
        "depth": depth,
        "unique_tokens": unique,
        "largest_score_difference": worst,
        "fewer_tokens": theirs["tokens"] / ours["tokens"],
        "less_time": theirs["seconds"] / ours["seconds"],
        **{side: {k: v for k, v in r.items() if k != "scores"} for side, r in found.items()},
    }
    print(f"search of {width} beams, {depth} steps of {STEP} tokens: {unique} different tokens")
    for side, r in found.items():
        print(
            f"  {side:12s} {r['tokens']:8d} tokens  {r['seconds']:8.2f} s  "
            f"{r['peak_rss'] / 2**20:6.0f} MiB  recomputed {r['recomputed']}"
        )
    print(f"  {report['fewer_tokens']:.1f} x fewer tokens, {report['less_time']:.1f} x less time")
    return report


def main() -> None:
    """One side, as a process of its own; prints a JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=("incremental", "rescoring"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("width", type=int)
    parser.add_argument("depth", type=int)
    parser.add_argument("threads", type=int)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    run = incremental if args.side == "incremental" else rescoring
    print(json.dumps(run(args.directory, args.width, args.depth)))


if __name__ == "__main__":
    main()
