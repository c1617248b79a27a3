#!/usr/bin/env bash
# Compiles and links the CUDA half with nvcc where there is one, and loads it: no GPU is needed.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
if ! command -v nvcc >/dev/null; then
  echo "check-cuda: skipped, there is no nvcc on PATH"
  exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
git -C "$root" archive --format=tar HEAD | tar -x -C "$work" --one-top-level=source
"$root/.venv/bin/python" -m venv --system-site-packages "$work/venv"
# The .venv of the checkout lends torch and the build tools; the package itself comes from the copy.
"$root/.venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
  >"$("$work/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/lent.pth"
cd "$work"
PATH="$root/.venv/bin:$PATH" AUTODECO_CUDA=on "$work/venv/bin/python" -m pip --quiet \
  --disable-pip-version-check install --no-build-isolation --no-deps ./source
"$work/venv/bin/python" - <<'PY'
import torch
import autodeco_ext

info = autodeco_ext.build_info()
assert info["cuda_built"], info
for key in sorted(info):
    print(f"check-cuda: {key} = {info[key]}")
assert autodeco_ext.sample(torch.tensor([[0.0, 9.0]]), 0.0, seed=1).tolist() == [1]
PY
echo "check-cuda: passed"
