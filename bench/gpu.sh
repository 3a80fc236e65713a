#!/usr/bin/env bash
# All that a GPU machine should do, in one call of under ten minutes: see bench/README.md.
#   bash bench/gpu.sh            install, test, measure; results in $OUT (default bench/results)
#   bash bench/gpu.sh --dry-run  without a GPU: are the commands there, do their arguments parse
cd "$(dirname "$0")/.." && exec "${PYTHON:-python3}" -m bench.gpu "$@"
