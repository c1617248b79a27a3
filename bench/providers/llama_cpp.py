"""llama.cpp's sampler chain (temp, top_p, dist) through llama-cpp-python's low-level API.

It works on an array of (token, logit, probability): filling that array for every row is part of its
time, as it is in llama.cpp.
"""

from __future__ import annotations

import ctypes
import importlib.util

import numpy
import torch

from bench.cases.kept_bounds import token_up_to_ties_is_right
from bench.providers import Missing, Provider


def sample() -> Provider | Missing:
    if importlib.util.find_spec("llama_cpp") is None:
        return Missing("not installed: run pip install llama-cpp-python")
    from llama_cpp import llama_cpp

    candidate = numpy.dtype([("id", numpy.int32), ("logit", numpy.float32), ("p", numpy.float32)])
    chains: dict[tuple[float, float], ctypes.c_void_p] = {}

    def chain(temperature: float, top_p: float):
        key = (temperature, top_p)
        if key not in chains:
            sampler = llama_cpp.llama_sampler_chain_init(
                llama_cpp.llama_sampler_chain_default_params()
            )
            for stage in (
                llama_cpp.llama_sampler_init_temp(temperature),
                llama_cpp.llama_sampler_init_top_p(top_p, 1),
                llama_cpp.llama_sampler_init_dist(0),
            ):
                llama_cpp.llama_sampler_chain_add(sampler, stage)
            chains[key] = sampler
        return chains[key]

    def draw(logits: torch.Tensor, t: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        tokens = []
        candidates = numpy.empty(logits.shape[-1], candidate)
        for row, temperature, top_p in zip(
            logits.float().numpy(), t.tolist(), p.tolist(), strict=True
        ):
            candidates["id"] = numpy.arange(len(row), dtype=numpy.int32)
            candidates["logit"] = row
            candidates["p"] = 0.0
            array = llama_cpp.llama_token_data_array(
                data=candidates.ctypes.data_as(llama_cpp.llama_token_data_p),
                size=len(row),
                selected=-1,
                sorted=False,
            )
            llama_cpp.llama_sampler_apply(chain(temperature, top_p), ctypes.byref(array))
            tokens.append(array.data[array.selected].id)
        return torch.tensor(tokens)

    return Provider(draw, token_up_to_ties_is_right)
