"""Which tokens a kept set must hold, and which it may: shared by the cases that keep a nucleus."""

from __future__ import annotations

import torch

from autodeco_ext import reference

# Room at the cut, in mass: for us and torch's sort; for peers, some of which search a threshold.
SLACK = 1e-5
PEER_SLACK = 1e-3
_ROWS_AT_ONCE = 32  # a float64 sort of all rows would need many times their memory
_Bounds = tuple[torch.Tensor, torch.Tensor]
_last: tuple[tuple[torch.Tensor, ...], dict[float, _Bounds]] | None = None  # by slack


def kept_bounds(
    logits: torch.Tensor, temperature: torch.Tensor, top_p: torch.Tensor, slack: float = SLACK
) -> _Bounds:
    """(must be kept, may be kept), bool [rows, vocab]: the nuclei of P - slack and P + slack.

    Most providers of a shape are judged with the same logits, T and P, so the answers for the last
    are remembered; that holds on to the logits, so that no others can lie at their address.
    """
    global _last
    if _last is None or not _are_same(_last[0], (logits, temperature, top_p)):
        _last = ((logits, temperature, top_p), {})
    remembered = _last[1]
    if slack in remembered:
        return remembered[slack]
    least, most = [], []
    parts = (x.split(_ROWS_AT_ONCE) for x in (logits, temperature, top_p))
    for rows, t, p in zip(*parts, strict=True):
        least.append(reference.kept_mask(rows, t, p - slack))
        most.append(reference.kept_mask(rows, t, (p + slack).clamp(max=1.0)))
    remembered[slack] = (torch.cat(least), torch.cat(most))
    return remembered[slack]


def _are_same(ours: tuple[torch.Tensor, ...], others: tuple[torch.Tensor, ...]) -> bool:
    if ours[0].data_ptr() != others[0].data_ptr() or ours[0].shape != others[0].shape:
        return False
    return all(torch.equal(*pair) for pair in zip(ours[1:], others[1:], strict=True))


def _with_ties(logits: torch.Tensor, may_be_kept: torch.Tensor) -> torch.Tensor:
    """What a threshold on the logits may keep: every token tied with one that may be kept."""
    lowest = torch.where(may_be_kept, logits.float(), float("inf")).amin(-1, keepdim=True)
    return logits.float() >= lowest


def tokens_are_kept(tokens: torch.Tensor, kept: torch.Tensor) -> bool:
    """One token per row [rows], each in kept [rows, vocab]."""
    if tokens.shape != kept.shape[:1]:
        return False
    if not bool(((tokens >= 0) & (tokens < kept.shape[1])).all()):
        return False
    return bool(kept.gather(-1, tokens.long()[:, None]).all())


def filtered_is_right(
    filtered: torch.Tensor,
    must_be_kept: torch.Tensor,
    may_be_kept: torch.Tensor,
    logits: torch.Tensor,
    temperature: torch.Tensor,
) -> bool:
    """-inf outside the kept set, l / T inside."""
    kept = filtered > -float("inf")
    if not bool((must_be_kept <= kept).all() and (kept <= may_be_kept).all()):
        return False
    expected = torch.div(logits, temperature[:, None]).where(kept, filtered)
    return bool(torch.isclose(filtered, expected, rtol=1e-5, atol=1e-6).all())


def token_up_to_ties_is_right(
    tokens: torch.Tensor, logits: torch.Tensor, t: torch.Tensor, p: torch.Tensor
) -> bool:
    """For peers that cut at a logit, not at a token."""
    _, may_be_kept = kept_bounds(logits, t, p, PEER_SLACK)
    return tokens_are_kept(tokens, _with_ties(logits, may_be_kept))


def filtered_up_to_ties_is_right(
    filtered: torch.Tensor, logits: torch.Tensor, t: torch.Tensor, p: torch.Tensor
) -> bool:
    """For peers that keep all tokens tied at the cut, or other ones of them than the first."""
    must_be_kept, may_be_kept = kept_bounds(logits, t, p, PEER_SLACK)
    may_be_kept = _with_ties(logits, may_be_kept)
    lowest = torch.where(must_be_kept, logits.float(), float("inf")).amin(-1, keepdim=True)
    return filtered_is_right(filtered, logits.float() > lowest, may_be_kept, logits, t)


def forget() -> None:
    """Frees the last answers and the logits they were for."""
    global _last
    _last = None
