#!/usr/bin/env bash
# `pip install .` as a user types it, in fresh environments: with build isolation, without it, and
# without torch. The package is then used from an empty directory.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# A copy, so that an earlier build in the checkout cannot help, and its path can go away afterwards:
# of tracked files, changes included.
changed=$(git -C "$root" stash create)
git -C "$root" archive --format=tar "${changed:-HEAD}" | tar -x -C "$work" --one-top-level=source

fail() { echo "check-package: $1" >&2; exit 1; }
pip() { "$work/$1/bin/python" -m pip --disable-pip-version-check --quiet "${@:2}"; }
use() {
  mkdir -p "$work/empty"
  (cd "$work/empty" && "$work/$1/bin/python" - <<'PY'
import torch
import autodeco_ext

logits = torch.tensor([[0.0, 1.0, 2.0], [5.0, 0.0, 0.0]])
assert autodeco_ext.sample(logits, torch.tensor([0.0, 1.0]), top_p=0.9, seed=7).tolist() == [2, 0]
print("check-package:", autodeco_ext.__file__, "works with torch", torch.__version__)
PY
  )
}

echo "check-package: with build isolation"
python3 -m venv "$work/isolated"
pip isolated install --upgrade pip
"$work/isolated/bin/python" "$work/source/tools/install_torch.py"
pip isolated install "$work/source"
use isolated
"$work/isolated/bin/autodeco" info >/dev/null || fail "autodeco info failed"

echo "check-package: without build isolation"
pip isolated uninstall --yes autodeco_ext
pip isolated install cmake ninja pybind11 'setuptools>=77'
rm -rf "$work/source/build"
pip isolated install --no-build-isolation --no-deps "$work/source"
mv "$work/source" "$work/moved"
use isolated

echo "check-package: without torch"
python3 -m venv "$work/bare"
if pip bare install "$work/moved" >"$work/log" 2>&1; then fail "an install without torch succeeded"; fi
grep -q "autodeco_ext: no torch found to build against" "$work/log" || { cat "$work/log"; fail "no sentence"; }
echo "check-package: passed"
