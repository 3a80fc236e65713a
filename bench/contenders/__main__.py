"""Run one contender: python -m bench.contenders NAME WORKLOAD.json; prints its outcome as JSON."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from ..machine import peak_rss_bytes
from .base import NotInstalled, Workload


def main(name: str, workload_file: str) -> None:
    """Measure a contender, named by its module, in this process."""
    workload = Workload.load(Path(workload_file))
    torch.set_num_threads(workload.threads)
    torch.manual_seed(0)
    try:
        outcome = importlib.import_module(f"{__package__}.{name}").run(workload)
    except NotInstalled as error:
        print(json.dumps({"not_installed": str(error)}))
        return
    outcome.peak_gib = peak_rss_bytes() / 2**30
    print(json.dumps(asdict(outcome)))


if __name__ == "__main__":
    main(*sys.argv[1:])
