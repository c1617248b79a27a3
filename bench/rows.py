"""Logits to time with: several batches, so that a round does not find its rows in the cache."""

from __future__ import annotations

import torch

MIXED = "mixed"
DISTRIBUTIONS = ("peaked", "typical", "gaussian", "gaussian5", "uniform", "tied", MIXED)
# Peaked rows that all have this T and P: what a hot row costs, which a mean over the ranges hides.
# Timed where they are asked for by name.
FIXED_PARAMETERS = {
    f"T{temperature:g}-P{top_p:g}": {"temperature": temperature, "top_p": top_p}
    for temperature in (1.0, 1.5, 1.9)
    for top_p in (0.3, 0.9, 0.95, 0.99)
}
# Rows by turns, and what is not drawn as for other batches. A mixed batch is greedy, without a
# filter, ordinary, and three hard rows.
_KINDS: dict[str, tuple[tuple[str, dict[str, float]], ...]] = {
    "typical": (("peaked", {"temperature": 1.0, "top_p": 0.95}),),
    MIXED: (
        ("peaked", {"temperature": 0.0}),
        ("peaked", {"top_p": 1.0}),
        ("peaked", {}),
        ("gaussian", {}),
        ("uniform", {}),
        ("tied", {}),
    ),
    **{name: (("peaked", given),) for name, given in FIXED_PARAMETERS.items()},
}
MIXED_KINDS = len(_KINDS[MIXED])  # row r is of kind r % MIXED_KINDS
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TEMPERATURES = (0.1, 2.0)
TOP_PS = (0.1, 1.0)
GOAL_VOCAB = 151936  # what goals are told for, and charts drawn of
MEAN_TEMPERATURE = sum(TEMPERATURES) / 2
MEAN_TOP_P = sum(TOP_PS) / 2


def batches(
    distribution: str,
    count: int,
    rows: int,
    vocab: int,
    dtype: torch.dtype,
    device: str = "cpu",
) -> torch.Tensor:
    """Logits [count, rows, vocab].

    "peaked", "typical": the r-th token has p ~ r^-1.8, as in a language model. "gaussian",
    "gaussian5": standard deviation 1 and 5. "uniform": all equal. "tied": Gaussian of standard
    deviation 2, rounded to integers, so that thousands of tokens share a logit at any boundary.
    "mixed": rows of several of these by turns. Those of FIXED_PARAMETERS: as "peaked".
    """
    known = (*DISTRIBUTIONS, *FIXED_PARAMETERS)
    if distribution not in known:
        raise ValueError(f"bench: distribution must be one of {known}, got {distribution!r}")
    generator = torch.Generator(device).manual_seed(0)
    logits = torch.empty(count, rows, vocab, dtype=dtype, device=device)
    for batch in logits:  # one by one: the float32 in between need not be as large as all
        kinds = _kinds(distribution)
        for first, (kind, _) in enumerate(kinds):
            _fill(batch[first :: len(kinds)], kind, generator)
    return logits


def _kinds(distribution: str) -> tuple[tuple[str, dict[str, float]], ...]:
    return _KINDS.get(distribution, ((distribution, {}),))


def _fill(batch: torch.Tensor, distribution: str, generator: torch.Generator) -> None:
    shape = {"size": batch.shape, "generator": generator, "device": batch.device}
    if distribution == "peaked":
        rank = 1 + batch.shape[-1] * torch.rand(**shape)
        batch.copy_(12 - 1.8 * rank.log_())
    elif distribution == "uniform":
        batch.zero_()
    else:
        normal = torch.randn(**shape)
        if distribution == "gaussian5":
            normal *= 5
        if distribution == "tied":
            normal = (2 * normal).round_()
        batch.copy_(normal)


def parameters(
    distribution: str, count: int, rows: int, device: str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """T and P of `count` batches, float32 [count, rows], in [0.1, 2] and [0.1, 1].

    Each batch has one value in each of `rows` equal parts of the range, in random order, and every
    such part is covered evenly by the batches, so few rows are as heterogeneous as many. Some rows
    of a mixed batch have values of their own, "typical" ones all those that people set by hand,
    and those of FIXED_PARAMETERS all that their name says.
    """
    generator = torch.Generator().manual_seed(1)  # the same on every device

    def stratified() -> torch.Tensor:
        parts, shares, jitter = torch.rand(3, count, rows, generator=generator)
        part = parts.argsort(dim=1)
        return (part + ((shares.argsort(dim=0) + jitter) / count).gather(1, part)) / rows

    ranges = (TEMPERATURES, TOP_PS)
    temperature, top_p = (low + (high - low) * stratified() for low, high in ranges)
    kinds = _kinds(distribution)
    for first, (_, given) in enumerate(kinds):
        own = slice(first, None, len(kinds))
        temperature[:, own] = given.get("temperature", temperature[:, own])
        top_p[:, own] = given.get("top_p", top_p[:, own])
    return temperature.to(device), top_p.to(device)
