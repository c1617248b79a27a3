#!/usr/bin/env bash
# Builds and runs the native tests under AddressSanitizer and UBSan, and the CUDA kernels on the
# emulated device, also under ThreadSanitizer. Before that the CPU kernels must compile for AArch64.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
if command -v aarch64-linux-gnu-g++ >/dev/null; then
  # The flags of CMakeLists.txt. To machine code: what cannot be lowered is no error of syntax.
  flags=(-std=c++20 -O3 -fno-trapping-math -fno-math-errno -fPIC -fvisibility=hidden -Wall -Wextra
         -DAUTODECO_ISA=scalar -Icsrc/include -Icsrc/cpu)
  for source in csrc/cpu/kernels.cpp csrc/cpu/isa.cpp; do
    aarch64-linux-gnu-g++ "${flags[@]}" -c -o /dev/null "$source"
  done
  echo "check-native: the CPU kernels compile for AArch64"
else
  echo "check-native: AArch64 was not checked: there is no aarch64-linux-gnu-g++ on PATH"
fi
mkdir -p build
cmake -S csrc/tests -B build/native -G Ninja >build/native.log 2>&1 || { cat build/native.log; exit 1; }
cmake --build build/native
ctest --test-dir build/native --output-on-failure
