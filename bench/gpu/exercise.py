"""Every op once on small rows of every kind: what the sanitizers watch.

Vocabularies of one column, of less and more than a segment, not a multiple of anything, and of
several blocks a row; rows that are not aligned to 16 bytes; every distribution and type. Then what
the benchmarks leave out: top_k, min_p, several samples and their infos, and dL/dlogits.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

import autodeco_ext
from bench import cases
from bench.providers import Provider
from bench.rows import DISTRIBUTIONS, DTYPES, batches, parameters

VOCABS = (1, 7, 1000, 4099, 40000)
TOP_KS = (1, 40, 3500)  # an argmax, a list of candidates, two searches that share their reads


def main(device: str = "cuda", vocabs: tuple[int, ...] = VOCABS) -> int:
    mistakes: list[str] = []
    count = 0
    ops = [op for op in cases.NAMES if not hasattr(cases.case(op), "inputs")]  # it has no logits
    for op, vocab, dtype in itertools.product(ops, vocabs, DTYPES):
        # Distributions in turn, not all for each: the sanitizers slow a kernel down a hundredfold.
        known = [name for name in DISTRIBUTIONS if cases.has_distribution(op, name)]
        distribution = known[count % len(known)]
        logits, temperature, top_p = _rows(distribution, count, vocab, dtype, device)
        arguments = cases.arguments(op, logits, temperature, top_p)
        module = cases.case(op)
        for name in (cases.OURS, cases.FLOOR):
            provider = module.providers(device).get(name)
            if not isinstance(provider, Provider):
                continue
            result = provider.run(*arguments)
            is_right = provider.is_right or module.is_right
            if not is_right(result, *arguments):
                mistakes.append(f"{op} {name} {distribution} {list(logits.shape)} {dtype}")
            count += 1
    checks = {"sample with top_k and min_p": samples_are_right, "dL/dlogits": gradient_is_right}
    for number, (vocab, dtype) in enumerate(itertools.product(vocabs, DTYPES)):
        distribution = DISTRIBUTIONS[number % len(DISTRIBUTIONS)]
        rows = _rows(distribution, number, vocab, dtype, device)
        for name, is_right in checks.items():
            if not is_right(*rows, number):
                mistakes.append(f"{name} {distribution} {list(rows[0].shape)} {dtype}")
            count += 1
    if device == "cuda":
        torch.cuda.synchronize()
    for mistake in mistakes:
        print(f"wrong: {mistake}")
    print(f"exercise: {count} calls, {len(mistakes)} wrong")
    return 1 if mistakes else 0


def _rows(
    distribution: str, number: int, vocab: int, dtype: str, device: str
) -> tuple[Tensor, Tensor, Tensor]:
    """logits, T, P; one to three rows, every other time not aligned."""
    rows = 1 + number % 3
    logits = batches(distribution, 1, rows, vocab + 1, DTYPES[dtype], device)[0]
    temperature, top_p = parameters(distribution, 1, rows, device)
    return logits[:, number % 2 :][:, :vocab], temperature[0], top_p[0]


def samples_are_right(logits: Tensor, temperature: Tensor, top_p: Tensor, number: int) -> bool:
    """Every sample is one that filter_logits keeps, and the infos count the same tokens."""
    filters = {"top_k": TOP_KS[number % len(TOP_KS)], "min_p": (1e-4, 0.0)[number % 2]}
    output = autodeco_ext.sample(
        logits, temperature, top_p, **filters, seed=number, num_samples=3, return_info=True
    )
    kept = autodeco_ext.filter_logits(logits, temperature, top_p, **filters) > -float("inf")
    tokens = output.tokens
    if not bool(((tokens >= 0) & (tokens < logits.shape[-1])).all()):
        return False
    return bool(kept.gather(-1, tokens).all()) and torch.equal(output.kept, kept.sum(-1))


def gradient_is_right(logits: Tensor, temperature: Tensor, top_p: Tensor, number: int) -> bool:
    """Finite, and zero summed over a row: the losses do not change when every logit shifts."""
    logits = logits.detach().requires_grad_()
    labels = (torch.arange(len(logits), device=logits.device) + number) % logits.shape[-1]
    temperature = temperature.clamp(min=0.1)  # a greedy row of a mixed batch has no loss
    losses = autodeco_ext.autodeco_loss(
        logits, temperature, top_p, labels, easy_token_drop=0, reduction="none"
    )
    (gradient,) = torch.autograd.grad(losses.loss.sum(), logits)
    gradient = gradient.double()
    limits = torch.finfo(logits.dtype)
    # Each element is rounded to the dtype of the logits, whose least steps are not relative.
    rounding = (
        4 * limits.eps * gradient.abs().sum(-1) + gradient.shape[-1] * limits.tiny * limits.eps
    )
    return bool((gradient.sum(-1).abs() <= 1e-6 + rounding).all())


if __name__ == "__main__":
    raise SystemExit(main())
