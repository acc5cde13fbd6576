#!/usr/bin/env bash
# Runs the tests: bash scripts/test.sh [PYTEST ARGUMENT ...]; -m slow, for instance, runs those left out by default.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # the tests' tensors are tiny, and idle threads cost time on a busy machine
exec "$python" -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile "$@"
