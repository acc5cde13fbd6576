#!/usr/bin/env bash
# Runs the tests of ops on C sources compiled with gcc's address and undefined behaviour sanitizers. All fresh memory,
# that of tensors and that of the kernel, is filled with NaN. Tests that do not use the kernel (those of transformations
# and Triton) are left out. It takes minutes. Arguments go to pytest.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/venv.sh"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export CC=${CC:-gcc}
CFLAGS="-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -DPOISON" \
    "$python" -W ignore setup.py -qq build --build-base "$folder/build" --build-lib "$folder/lib"
[ -e "$folder/lib/rnndrop_plugin/ops/librecurrence.so" ] || exit 2

# Python itself is not instrumented, so the sanitizers' runtime must be loaded first, with the C++ library that it uses.
# Memory that Python never frees is not a leak. A test loads the library twice, which does not violate the one
# definition rule.
export LD_PRELOAD="$($CC -print-file-name=libasan.so) $($CC -print-file-name=libstdc++.so)"
export ASAN_OPTIONS=detect_leaks=0:detect_odr_violation=0 PYTHONPATH=$folder/lib:$PWD
"$python" -P -m pytest -o pythonpath=scripts --poison --package "$folder/lib/rnndrop_plugin" \
    --ignore-glob="*/test_transformations.py" --ignore-glob="*/triton/*" "${@:-tests/ops}"
