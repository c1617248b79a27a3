"""llama.cpp's sampler chain (temp, top_p, dist), called through its C interface.

The library is that of llama-cpp-python where that is installed, which has no wheel and is compiled
for minutes, or else that of a wheel which bench/fetch_peers.py fetches.

The chain works on an array of (token, logit, probability), which it reorders: filling that array
for every row is part of its time, as it is in llama.cpp.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import importlib.util
from pathlib import Path

import numpy
import torch

from bench.cases.kept_bounds import token_up_to_ties_is_right
from bench.fetch_peers import requirement
from bench.providers import NOT_FETCHED, PEERS, Missing, Provider

FETCHED = PEERS / "llama_cpp" / "xllamacpp.abi3.so"

_Sampler = ctypes.c_void_p


class _ChainParams(ctypes.Structure):
    _fields_ = (("no_perf", ctypes.c_bool),)


class _Candidates(ctypes.Structure):
    """llama_token_data_array; an element of `data` is (int32 id, float logit, float p)."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("size", ctypes.c_size_t),
        ("selected", ctypes.c_int64),
        ("sorted", ctypes.c_bool),
    )


# Result and arguments of what is called, as in llama.h.
_FUNCTIONS = {
    "llama_sampler_chain_default_params": (_ChainParams, ()),
    "llama_sampler_chain_init": (_Sampler, (_ChainParams,)),
    "llama_sampler_chain_add": (None, (_Sampler, _Sampler)),
    "llama_sampler_init_temp": (_Sampler, (ctypes.c_float,)),
    "llama_sampler_init_top_p": (_Sampler, (ctypes.c_float, ctypes.c_size_t)),
    "llama_sampler_init_dist": (_Sampler, (ctypes.c_uint32,)),
    "llama_sampler_apply": (None, (_Sampler, ctypes.POINTER(_Candidates))),
}


def find() -> tuple[Path, str] | None:
    """The library and the package it is from, or None where there is neither."""
    package = importlib.util.find_spec("llama_cpp")  # importing it would print and take seconds
    if package is not None and package.origin is not None:
        library = Path(package.origin).parent / "lib" / "libllama.so"
        return library, f"llama-cpp-python=={importlib.metadata.version('llama-cpp-python')}"
    return (FETCHED, requirement("xllamacpp")) if FETCHED.is_file() else None


@functools.cache
def load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def sample() -> Provider | Missing:
    found = find()
    if found is None:
        return Missing(NOT_FETCHED)
    path, package = found
    try:
        library = load(path)
    except OSError as error:  # such as a C library that is too old for it
        return Missing(f"does not load: {error}")

    @functools.cache  # one chain per row's parameters, made by the call that is checked, not timed
    def chain(temperature: float, top_p: float) -> int:
        sampler = library.llama_sampler_chain_init(library.llama_sampler_chain_default_params())
        for stage in (
            library.llama_sampler_init_temp(temperature),
            library.llama_sampler_init_top_p(top_p, 1),
            library.llama_sampler_init_dist(0),
        ):
            library.llama_sampler_chain_add(sampler, stage)
        return sampler

    @functools.cache
    def fresh_candidates(vocab: int) -> numpy.ndarray:
        """(id, 0, 0) for every token, as four-byte words [vocab, 3]."""
        words = numpy.zeros((vocab, 3), numpy.int32)
        words[:, 0] = numpy.arange(vocab)
        return words

    def draw(logits: torch.Tensor, t: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        fresh = fresh_candidates(logits.shape[-1])
        words = numpy.empty_like(fresh)
        tokens = []
        for row, temperature, top_p in zip(
            logits.float().numpy(), t.tolist(), p.tolist(), strict=True
        ):
            numpy.copyto(words, fresh)
            words.view(numpy.float32)[:, 1] = row
            array = _Candidates(words.ctypes.data, len(row), -1, False)
            library.llama_sampler_apply(chain(temperature, top_p), ctypes.byref(array))
            tokens.append(int(words[array.selected, 0]))
        return torch.tensor(tokens)

    return Provider(draw, token_up_to_ties_is_right, package=package)
