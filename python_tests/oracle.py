"""What the tests judge results with: the kept-set rule, random rows, chi-square, tolerances.

Everything here is float64 and independent of the library: the reference is judged by it as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# How far a cumulative mass may be from top_p at the cut (semantics.md, section 1).
KEPT_SLACK = 2e-6
# How far a uniform number may lie outside its token's part of the float64 distribution function: a
# mass is a float32 exp(z) of a z within 4 ulp, so a share of them is off by less than this.
DRAW_SLACK = 2e-6
_SMALLEST_EXPECTED = 5.0  # of a cell in Pearson's test
ROW_KINDS = ("peaked", "gaussian", "flat", "tied", "masked", "two_valued")


class Tolerance(NamedTuple):
    """|got - expected| <= absolute + relative * |expected|."""

    relative: float
    absolute: float
    reason: str


# Keyed by the dtype of the logits, or by what is compared. Results are compared with the reference
# in float64 on the same, already rounded, logits: a narrow input dtype therefore does not widen the
# tolerance.
TOLERANCES = {
    torch.float64: Tolerance(
        1e-12, 1e-13, "the reference itself: a few hundred roundings of 1e-16 in sums of 1e5 terms"
    ),
    torch.float32: Tolerance(
        1e-5, 2e-6, "4 ulp of z = (l - max)/T up to |z| = 30 before exp, then float32 outputs"
    ),
    torch.bfloat16: Tolerance(1e-5, 2e-6, "read exactly, computed and returned as float32"),
    torch.float16: Tolerance(1e-5, 2e-6, "read exactly, computed and returned as float32"),
    "heads": Tolerance(
        0, 1e-6, "8 ulp of T or P near 1: float32 sums of H and of 256 terms, then a sigmoid"
    ),
    # Of the training losses (loss_oracle.py); absolute is in units of the scale found there.
    "loss": Tolerance(
        1e-5, 1e-5, "float32 masses of 4 ulp, light tokens grouped; the scale is where -ln q is eps"
    ),
    "d_temperature": Tolerance(
        1e-4, 1e-5, "a sum of both signs: near a zero crossing only the size of its terms is left"
    ),
    "d_top_p": Tolerance(
        1e-4, 2e-7, "a multiple of the mass beyond the cut, which is known to 2e-7 of all mass"
    ),
    "d_logits": Tolerance(
        1e-3, 1e-5, "light tokens beside each other share what the mass before them does to them"
    ),
}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_close(
    got: Tensor, expected: Tensor, kind: torch.dtype | str, what: str = "result"
) -> None:
    """Compares with the tolerance of ``kind``, infinities and NaN alike only with themselves."""
    tolerance = TOLERANCES[kind]
    torch.testing.assert_close(
        got.double(),
        expected.double(),
        rtol=tolerance.relative,
        atol=tolerance.absolute,
        equal_nan=True,
        msg=lambda text: f"{what}: {text}\ntolerance: {tolerance.reason}",
    )


class _Parameters(NamedTuple):
    """float64 [rows, 1], by way of float32 where the definitions round."""

    temperature: Tensor
    top_p: Tensor
    top_k: Tensor  # 0 is off, like min_p <= 0
    min_p: Tensor
    valid_vocab: Tensor


def _column(value: float | Tensor | None, default: float, rows: int) -> Tensor:
    value = torch.as_tensor(default if value is None else value)
    value = value.double() if value.dtype == torch.int64 else value.double().float().double()
    return value.reshape(-1).expand(rows)[:, None]


def _judge(logits: Tensor, counts: Tensor, kept: Tensor | None, parameters: _Parameters) -> Tensor:
    """Whether each row keeps a right number of tokens and, given ``kept``, those first in order."""
    temperature, top_p, top_k, min_p, valid_vocab = parameters
    columns = torch.arange(logits.shape[-1])
    narrow = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
    narrow = narrow.where(columns < valid_vocab, -torch.inf) + 0.0
    ordered, order = narrow.sort(dim=-1, descending=True, stable=True)  # faster than in float64
    finite = (ordered > -torch.inf).sum(-1)
    ordered = ordered.double()
    divisor = temperature.where(temperature > 0, 1.0)
    ratio = ((ordered - ordered[:, :1]) / divisor).exp()  # to the largest probability

    # top_k is exact. top_p: C_n >= P - slack from n = low on, C_{n-1} < P + slack up to n = high.
    available = torch.where(top_k[:, 0] > 0, finite.minimum(top_k[:, 0].long()), finite)
    running = (ratio * (columns < available[:, None])).cumsum(-1)
    running /= running[:, -1:].clone()
    low = 1 + (running < top_p - KEPT_SLACK).sum(-1)
    high = 1 + (running < top_p + KEPT_SLACK).sum(-1)
    off = top_p[:, 0] >= 1
    first_only = (top_p[:, 0] <= 0) | (temperature[:, 0] == 0)
    low = torch.where(off, available, low.minimum(available)).masked_fill(first_only, 1)
    high = torch.where(off, available, high.minimum(available)).masked_fill(first_only, 1)

    # min_p: ratios within a relative slack of it may go either way, equal logits only together.
    off, first_only = min_p[:, 0] <= 0, min_p[:, 0] > 1
    exists = ordered > -torch.inf
    sure = ((ratio >= min_p * (1 + KEPT_SLACK)) & exists).sum(-1).clamp(min=1)
    possible = ((ratio >= min_p * (1 - KEPT_SLACK)) & exists).sum(-1).clamp(min=1)
    sure = torch.where(off, finite, sure).masked_fill(first_only, 1)
    possible = torch.where(off, finite, possible).masked_fill(first_only, 1)
    last = (counts - 1).clamp(0, len(columns) - 1)[:, None]
    following = counts.clamp(0, len(columns) - 1)[:, None]
    separates = (ordered.gather(-1, last) != ordered.gather(-1, following))[:, 0]
    separates |= (counts == finite) | first_only

    # The result is the shorter of the two prefixes.
    by_top_p = (low <= counts) & (counts <= high) & (counts <= possible)
    by_min_p = (sure <= counts) & (counts <= possible) & separates & (counts <= high)
    right = by_top_p | by_min_p
    if kept is not None:
        right &= (kept.gather(-1, order) == (columns < counts[:, None])).all(-1)
    return right


def judge_kept(
    logits: Tensor,
    kept: Tensor,
    temperature: float | Tensor = 1.0,
    top_p: float | Tensor = 1.0,
    top_k: int | Tensor | None = None,
    min_p: float | Tensor | None = None,
    valid_vocab: int | Tensor | None = None,
) -> Tensor:
    """Whether each row's kept set is right, by the rule in semantics.md, bool [rows].

    A right set is a prefix of the order (logit descending, index ascending) of a length n with
    C_n >= P - 2e-6 and C_{n-1} < P + 2e-6; top_k, top_p >= 1, top_p <= 0 and T = 0 have no slack.

    Args:
        logits: [rows, vocab] or [vocab].
        kept: bool of the same shape, or int64 [rows] of how many tokens are kept.
        Others: scalars or [rows].
    """
    logits = logits.reshape(-1, logits.shape[-1])
    rows, vocab = logits.shape
    mask = kept.reshape(rows, vocab) if kept.dtype == torch.bool else None
    counts = kept.reshape(rows) if mask is None else mask.sum(-1)
    parameters = _Parameters(
        _column(temperature, 1.0, rows),
        _column(top_p, 1.0, rows),
        _column(top_k, 0, rows),
        _column(min_p, 0.0, rows),
        _column(valid_vocab, vocab, rows),
    )
    step = max(1, 2**22 // vocab)  # bounds the float64 temporaries to some 100 MB
    right = [torch.zeros(0, dtype=torch.bool)]
    for start in range(0, rows, step):
        part = slice(start, start + step)
        chunk = _Parameters(*(column[part] for column in parameters))
        part_mask = None if mask is None else mask[part]
        right.append(_judge(logits[part], counts[part], part_mask, chunk))
    return torch.cat(right)


def assert_kept(logits: Tensor, kept: Tensor, *parameters, **named) -> None:
    """judge_kept for every row; the failure names the first wrong row and how many there are."""
    right = judge_kept(logits, kept, *parameters, **named)
    if not right.all():
        row = int((~right).nonzero()[0])
        count = int(kept[row].sum() if kept.dtype == torch.bool else kept[row])
        given = {f"argument {i}": value for i, value in enumerate(parameters)} | named
        shown = {
            name: value[row].item() if isinstance(value, Tensor) and value.dim() else value
            for name, value in given.items()
        }
        raise AssertionError(
            f"{int((~right).sum())} of {len(right)} kept sets are wrong; first row {row} keeps "
            f"{count} of {logits.shape[-1]} with {shown}"
        )


def make_rows(
    kind: str, rows: int, vocab: int, dtype: torch.dtype, generator: torch.Generator
) -> Tensor:
    """Random logits [rows, vocab] with at least one finite value each.

    Args:
        kind: "peaked" (p of the r-th token ~ r^-s with s in 1.1 .. 2.5, as language models have),
            "gaussian", "flat" (even rows exactly, odd rows nearly), "tied" (rounded to bfloat16),
            "masked" (up to 99 % -inf), "two_valued".
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    def normal() -> Tensor:
        return torch.randn(rows, vocab, generator=generator)

    if kind == "peaked":
        slope = 1.1 + 1.4 * uniform(rows, 1)
        logits = 10 - slope * (1 + vocab * uniform(rows, vocab)).log()
    elif kind == "gaussian":
        logits = 3 * normal()
    elif kind == "flat":
        logits = 2 + 1e-3 * normal() * (torch.arange(rows) % 2)[:, None]
    elif kind == "tied":
        logits = (2 * normal()).bfloat16()
    elif kind == "masked":
        logits = (3 * normal()).masked_fill(
            uniform(rows, vocab) < 0.99 * uniform(rows, 1), -torch.inf
        )
        column = (uniform(rows, 1) * vocab).long().clamp(max=vocab - 1)
        logits = logits.scatter(-1, column, normal()[:, :1])
    elif kind == "two_valued":
        logits = torch.where(uniform(rows, vocab) < uniform(rows, 1), 1.5, -0.5)
    else:
        raise ValueError(f"oracle.make_rows: kind must be one of {ROW_KINDS}, got {kind!r}")
    return logits.to(dtype)


def random_parameters(rows: int, vocab: int, seed: int) -> dict[str, Tensor]:
    """Per-row parameters over their whole range, every filter off in a part of the rows."""
    random = torch.Generator().manual_seed(seed)

    def uniform() -> Tensor:
        return torch.rand(rows, generator=random)

    temperature = 0.05 + 2 * uniform()
    temperature[uniform() < 0.05] = 0.0
    top_p = 0.05 + uniform()  # a part is above 1
    top_p[uniform() < 0.05] = 0.0
    top_k = (1 + vocab * uniform() ** 3).long().where(uniform() < 0.3, 0)
    min_p = (0.3 * uniform() ** 2).where(uniform() < 0.3, 0.0)
    return {"temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p}


def draw_errors(
    logits: Tensor, kept: Tensor, tokens: Tensor, uniform: Tensor, temperature: Tensor
) -> Tensor:
    """How far each uniform number lies outside its token's part of the distribution, [rows].

    The token of a row owns [F(t - 1), F(t)), F being the distribution function over the kept set in
    index order, in float64. 0 inside; infinite for a token that is not kept.

    Args:
        logits: [rows, vocab].
        kept: bool [rows, vocab].
        tokens, uniform, temperature: [rows].
    """
    errors = [torch.zeros(0, dtype=torch.float64)]
    step = max(1, 2**22 // logits.shape[-1])  # bounds the float64 temporaries
    for start in range(0, len(logits), step):
        part = slice(start, start + step)
        masked = logits[part].double().masked_fill(~kept[part], -torch.inf)
        divisor = temperature[part].double().where(temperature[part] > 0, 1.0)[:, None]
        mass = ((masked - masked.amax(-1, keepdim=True)) / divisor).exp()
        running = mass.cumsum(-1)
        token, u = tokens[part, None], uniform[part, None]
        upper = running.gather(-1, token) / running[:, -1:]
        lower = upper - mass.gather(-1, token) / running[:, -1:]
        error = torch.maximum(lower - u, u - upper).clamp(min=0)
        errors.append(error.masked_fill(~kept[part].gather(-1, token), torch.inf)[:, 0])
    return torch.cat(errors)


def chi_square_pvalue(counts: Tensor, probs: Tensor) -> float:
    """p-value of the counts under the probabilities, by Pearson's test.

    Cells expected fewer than five times are pooled into one, and that one with the
    next larger cell if it is still too small. A count where the probability is 0 gives 0.

    Args:
        counts: [vocab], how often each token was drawn.
        probs: [vocab], need not be normalised.
    """
    counts, probs = counts.double().reshape(-1), probs.double().reshape(-1)
    if counts.shape != probs.shape:
        raise ValueError(
            f"oracle.chi_square_pvalue: counts must have shape {list(probs.shape)}, "
            f"got {list(counts.shape)}"
        )
    if (counts[probs == 0] > 0).any():
        return 0.0
    expected, order = (probs / probs.sum() * counts.sum()).sort()
    counts = counts[order]
    pooled = int((expected < _SMALLEST_EXPECTED).sum())
    while 0 < pooled < len(expected) and expected[:pooled].sum() < _SMALLEST_EXPECTED:
        pooled += 1
    if pooled:
        expected = torch.cat([expected[:pooled].sum()[None], expected[pooled:]])
        counts = torch.cat([counts[:pooled].sum()[None], counts[pooled:]])
    positive = expected > 0
    expected, counts = expected[positive], counts[positive]
    if len(expected) < 2:
        return 1.0
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = torch.tensor((len(expected) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, statistic / 2))


def tokens_pvalue(tokens: Tensor, probs: Tensor) -> float:
    """chi_square_pvalue of drawn tokens, of any shape; a token outside the vocabulary gives 0."""
    tokens = tokens.reshape(-1)
    if ((tokens < 0) | (tokens >= probs.numel())).any():
        return 0.0
    return chi_square_pvalue(tokens.bincount(minlength=probs.numel()), probs)


def generated_pvalue(
    tokens: Tensor, prompt: Tensor, distribution: Callable[[Tensor], Tensor]
) -> float:
    """The smaller p-value of the first token of a row and of the second after the commonest first.

    Args:
        tokens: [rows, more than length + 1], what generate returned for rows of this prompt.
        prompt: [length].
        distribution: of the token after the ids it is given, [length] -> [vocab].
    """
    first, second = tokens[:, len(prompt)], tokens[:, len(prompt) + 1]
    common = first.mode().values
    after = distribution(torch.cat([prompt, common[None]]))
    return min(
        tokens_pvalue(first, distribution(prompt)),
        tokens_pvalue(second[first == common], after),
    )
