"""sample(logits, temperature, top_p).

Peers draw with random numbers of their own, so of them a token in the nucleus is asked; of ours,
the token that its seed stands for.
"""

from __future__ import annotations

import torch

import autodeco_ext
from autodeco_ext import reference
from bench.cases.kept_bounds import SLACK, kept_bounds, tokens_are_kept
from bench.providers import (
    Missing,
    Provider,
    floor,
    hugging_face,
    refuses_zero_temperature,
    torch_sort,
    torch_topk,
)
from bench.rows import DISTRIBUTIONS as USUAL_DISTRIBUTIONS
from bench.rows import FIXED_PARAMETERS

DISTRIBUTIONS = (*USUAL_DISTRIBUTIONS, *FIXED_PARAMETERS)  # all, the mixed one too
SEED = 0
_ROWS_AT_ONCE = 32  # float64 copies and a sort of all rows would need many times their memory


def providers(device: str) -> dict[str, Provider | Missing]:
    ours = {
        "autodeco_ext": Provider(
            lambda logits, t, p: autodeco_ext.sample(logits, t, p, seed=SEED),
            is_draw_of_seed,
            kept_tokens=_kept_tokens,
        ),
        "floor": floor.PROVIDER,
    }
    dividing = {
        "torch sort": torch_sort.SAMPLE,
        "torch sort compiled": torch_sort.SAMPLE_COMPILED,
        "torch topk": torch_topk.SAMPLE,
        "torch topk compiled": torch_topk.SAMPLE_COMPILED,
    }
    others = {"hugging face": hugging_face.SAMPLE}
    if device == "cuda":
        from bench.providers import flash_infer, vllm

        dividing |= {**flash_infer.sample(), "vllm triton": vllm.sample("cuda")}
    else:
        from bench.providers import llama_cpp, vllm

        dividing["vllm"] = vllm.sample("cpu")
        others["llama.cpp"] = llama_cpp.sample()
    return {**ours, **{name: _refusing(peer) for name, peer in dividing.items()}, **others}


def _kept_tokens(logits: torch.Tensor, t: torch.Tensor, p: torch.Tensor) -> float:
    kept = autodeco_ext.sample(logits, t, p, seed=SEED, return_info=True).kept
    return kept.double().mean().item()


def _refusing(peer: Provider | Missing) -> Provider | Missing:
    if isinstance(peer, Missing):
        return peer
    return peer._replace(refuses=refuses_zero_temperature)


def is_right(tokens: torch.Tensor, logits: torch.Tensor, t: torch.Tensor, p: torch.Tensor) -> bool:
    """Every token lies in the nucleus, with room for rounding at the cut."""
    _, may_be_kept = kept_bounds(logits, t, p)
    return tokens_are_kept(tokens, may_be_kept)


def is_draw_of_seed(
    tokens: torch.Tensor, logits: torch.Tensor, t: torch.Tensor, p: torch.Tensor
) -> bool:
    """Every token is the one at which the running probability of the nucleus, in float64, passes
    the uniform number of (SEED, row), with room for rounding at the cut and in the sum."""
    if not is_right(tokens, logits, t, p):
        return False
    offsets = torch.arange(len(tokens), device=tokens.device)
    uniform = reference.philox_uniform(SEED, offsets)
    parts = (x.split(_ROWS_AT_ONCE) for x in (tokens, uniform, logits, t, p))
    for drawn, number, *rows in zip(*parts, strict=True):
        probs = reference.sampling_distribution(*rows)
        drawn = drawn.long()[:, None]
        upto = probs.cumsum(-1).gather(-1, drawn)[:, 0]
        before = upto - probs.gather(-1, drawn)[:, 0]
        if not bool(((before - SLACK <= number) & (number <= upto + SLACK)).all()):
            return False
    return True
