#!/usr/bin/env bash
# Builds and runs the native tests under AddressSanitizer and UBSan, and the CUDA kernels on the
# emulated device, also under ThreadSanitizer.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
mkdir -p build
cmake -S csrc/tests -B build/native -G Ninja >build/native.log 2>&1 || { cat build/native.log; exit 1; }
cmake --build build/native
ctest --test-dir build/native --output-on-failure
