#!/usr/bin/env bash
# Runs the tests of ops on C sources compiled with gcc's address and undefined behaviour sanitizers, with all fresh
# memory, that of tensors and the kernel's own, filled with NaN. What is not of the kernel, transformations and Triton,
# is left out. Takes minutes. Arguments go to pytest.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/venv.sh"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export CC=${CC:-gcc}
CFLAGS="-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -DPOISON" \
    "$python" -W ignore setup.py -qq build --build-base "$folder/build" --build-lib "$folder/lib"
[ -e "$folder/lib/rnndrop_plugin/ops/librecurrence.so" ] || exit 2

# Python itself is not instrumented: the runtime must be loaded first, with the C++ library that it looks into, and what
# Python never frees is no leak. A test loads the library twice, which breaks no rule of one definition.
export LD_PRELOAD="$($CC -print-file-name=libasan.so) $($CC -print-file-name=libstdc++.so)"
export ASAN_OPTIONS=detect_leaks=0:detect_odr_violation=0 PYTHONPATH=$folder/lib:$PWD
"$python" -P -m pytest -o pythonpath=scripts --poison --package "$folder/lib/rnndrop_plugin" \
    --ignore-glob="*/test_transformations.py" --ignore-glob="*/triton/*" "${@:-tests/ops}"
