#!/usr/bin/env bash
# Compiles and links the CUDA half with nvcc where there is one, fails if a kernel spills or needs more
# shared memory than its GPU has, and loads it: no GPU is needed.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
if ! command -v nvcc >/dev/null; then
  echo "check-cuda: skipped, there is no nvcc on PATH"
  exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# A copy, so that the build of the checkout stays as it is.
git -C "$root" archive --format=tar HEAD | tar -x -C "$work"
cd "$work"
# The log of the build holds the resources of every kernel.
AUTODECO_CUDA=on "$root/.venv/bin/python" setup.py --quiet build_ext --inplace >build.log 2>&1 ||
  { cat build.log; exit 1; }
# The Qwen vocabulary, and the largest one.
nvcc -std=c++20 --expt-relaxed-constexpr -Icsrc/include -o shared_memory tools/shared_memory.cu
./shared_memory 151936 1048576 >shared_memory.txt
"$root/.venv/bin/python" tools/kernel_resources.py build.log shared_memory.txt
"$root/.venv/bin/python" - <<'PY'
import sys

sys.path.insert(0, ".")
import torch

import autodeco_ext

info = autodeco_ext.build_info()
assert info["cuda_built"], info
for key in sorted(info):
    print(f"check-cuda: {key} = {info[key]}")
# Without a device the launchers must not even be reached; a CPU call must still work.
assert autodeco_ext.sample(torch.tensor([[0.0, 9.0]]), 0.0, seed=1).tolist() == [1]
PY
echo "check-cuda: passed"
