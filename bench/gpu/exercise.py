"""Every op once on small rows of every kind: what the sanitizers watch.

Vocabularies of one column, of less and more than a segment, not a multiple of anything, and of
several blocks a row; rows that are not aligned to 16 bytes; every distribution and type.
"""

from __future__ import annotations

import itertools

import torch

from bench import cases
from bench.providers import Provider
from bench.rows import DISTRIBUTIONS, DTYPES, batches, parameters

VOCABS = (1, 7, 1000, 4099, 40000)


def main() -> int:
    wrong = 0
    count = 0
    ops = [op for op in cases.NAMES if not hasattr(cases.case(op), "inputs")]  # it has no logits
    for op, vocab, dtype in itertools.product(ops, VOCABS, DTYPES):
        # Distributions in turn, not all for each: the sanitizers slow a kernel down a hundredfold.
        known = [name for name in DISTRIBUTIONS if cases.has_distribution(op, name)]
        distribution = known[count % len(known)]
        rows = 1 + count % 3
        logits = batches(distribution, 1, rows, vocab + 1, DTYPES[dtype], "cuda")[0]
        logits = logits[:, count % 2 :][:, :vocab]  # every other time not aligned
        temperature, top_p = parameters(distribution, rows, "cuda")
        arguments = cases.arguments(op, logits, temperature, top_p)
        module = cases.case(op)
        for name in (cases.OURS, cases.FLOOR):
            provider = module.providers("cuda").get(name)
            if not isinstance(provider, Provider):
                continue
            result = provider.run(*arguments)
            is_right = provider.is_right or module.is_right
            if not is_right(result, *arguments):
                print(f"wrong: {op} {name} {distribution} [{rows}, {vocab}] {dtype}")
                wrong += 1
            count += 1
    torch.cuda.synchronize()
    print(f"exercise: {count} calls, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
