#!/usr/bin/env bash
# Runs the tests: bash scripts/test.sh [PYTEST ARGUMENT ...], for instance -m slow for those left out by default.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
exec "$python" -m pytest "$@"
