#!/usr/bin/env bash
# Compiles and links the CUDA half with nvcc where there is one, fails if a kernel spills or needs more
# shared memory than its GPU has, and loads it: no GPU is needed.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
if ! command -v nvcc >/dev/null; then
  echo "check-cuda: nothing was checked: there is no nvcc on PATH (the CUDA half was not compiled)"
  exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# A copy, so that the build of the checkout stays as it is: of tracked files, changes included.
changed=$(git -C "$root" stash create)
git -C "$root" archive --format=tar "${changed:-HEAD}" | tar -x -C "$work"
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
from torch._subclasses.fake_tensor import FakeTensorMode

import autodeco_ext

info = autodeco_ext.build_info()
assert info["cuda_built"], info
for key in sorted(info):
    print(f"check-cuda: {key} = {info[key]}")
# A CPU call works. On a CPU torch, which has CUDA tensors only while it traces, those get a sentence.
assert autodeco_ext.sample(torch.tensor([[0.0, 9.0]]), 0.0, seed=1).tolist() == [1]
if not torch.backends.cuda.is_built():
    with FakeTensorMode():
        on_cuda = torch.empty(2, 3, device="cuda")
    try:
        autodeco_ext.sample(on_cuda, seed=1)
    except ValueError as error:
        print(f"check-cuda: {error}")
        assert str(error).endswith(f"got cuda:0: torch {torch.__version__} is a CPU build"), error
    else:
        raise AssertionError("a CUDA tensor was accepted by a CPU build of torch")
PY
echo "check-cuda: passed"
