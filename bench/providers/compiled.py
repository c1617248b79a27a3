"""torch.compile for peers that one process calls with every dtype and shape."""

from __future__ import annotations

import functools
import types

import torch

from bench.providers import Run


def compiled(function: Run) -> Run:
    """One call of the function is one graph, of a copy of it for each dtype of the first argument.

    Dynamo makes at most 8 graphs of one code object, and one dtype needs several: for one row and
    for more, and for ranges of V. `fullgraph` makes what would fall back to eager an error.
    """

    @functools.cache
    def graph(dtype: torch.dtype) -> Run:
        copy = types.FunctionType(function.__code__.replace(), function.__globals__)
        return torch.compile(copy, dynamic=True, fullgraph=True)

    def run(logits: torch.Tensor, *parameters: torch.Tensor) -> object:
        return graph(logits.dtype)(logits, *parameters)

    return run
