"""sample(logits, temperature, top_p)."""

from __future__ import annotations

import torch

import autodeco_ext
from bench.cases.kept_bounds import kept_bounds, tokens_are_kept
from bench.providers import (
    Missing,
    Provider,
    floor,
    hugging_face,
    refuses_zero_temperature,
    torch_sort,
    torch_topk,
)
from bench.rows import DISTRIBUTIONS  # noqa: F401  (all, the mixed one too)


def providers(device: str) -> dict[str, Provider | Missing]:
    ours = {
        "autodeco_ext": Provider(lambda logits, t, p: autodeco_ext.sample(logits, t, p, seed=0)),
        "floor": floor.PROVIDER,
    }
    dividing = {
        "torch sort": torch_sort.SAMPLE,
        "torch sort compiled": torch_sort.SAMPLE_COMPILED,
        "torch topk": torch_topk.SAMPLE,
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


def _refusing(peer: Provider | Missing) -> Provider | Missing:
    if isinstance(peer, Missing):
        return peer
    return peer._replace(refuses=refuses_zero_temperature)


def is_right(tokens: torch.Tensor, logits: torch.Tensor, t: torch.Tensor, p: torch.Tensor) -> bool:
    """Every token lies in the nucleus, with room for rounding at the cut."""
    _, may_be_kept = kept_bounds(logits, t, p)
    return tokens_are_kept(tokens, may_be_kept)
