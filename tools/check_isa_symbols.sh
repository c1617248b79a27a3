#!/usr/bin/env bash
# Fails if a kernel object shares a symbol beside its own `kernels`: at link time, code compiled for
# AVX-512 could then replace the baseline's.
set -euo pipefail
cd "$(dirname "$0")/.."
objects=$(find build/cmake-* -path '*autodeco_cpu_*' -name 'kernels.cpp.o')
[ -n "$objects" ] || { echo "check-isa-symbols: no kernel objects, run make build first" >&2; exit 1; }
for object in $objects; do
  shared=$(nm --demangle --defined-only "$object" | grep -E ' [WVuTDBR] ' | grep -vE '::kernels\(\)$' || true)
  if [ -n "$shared" ]; then
    printf 'check-isa-symbols: %s shares\n%s\n' "$object" "$shared" >&2
    exit 1
  fi
done
echo "check-isa-symbols: $(echo "$objects" | wc -l) kernel objects share no symbol"
