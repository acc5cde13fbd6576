#!/usr/bin/env bash
# Runs the tests: bash scripts/test.sh [PYTEST ARGUMENT ...], for instance -m slow for those left out by default.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # the tests' tensors are tiny, and idle threads cost much on a busy machine
exec "$python" -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile "$@"
