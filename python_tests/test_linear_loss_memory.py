"""What linear_autodeco_loss allocates: a chunk, and 64 bytes a position at most."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from linear_loss_case import HIDDEN, VOCAB, Case, module_of
from torch import Tensor, nn

from autodeco_ext import linear_autodeco_loss
from autodeco_ext.models import AutoDecoConfig, AutoDecoHeads


def live_bytes(function: Callable[[], object]) -> list[int]:
    """What torch's CPU allocator had given out in function, after each change, in order."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        kept = function()  # until all is counted
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    del kept
    return list(itertools.accumulate(event.nbytes() for event in events))


def peak_bytes(function: Callable[[], object]) -> int:
    return max(live_bytes(function))


def forward_case(tokens: int, hidden: int, vocab: int, **options: Any) -> Callable[[], Any]:
    torch.manual_seed(0)
    states, weight = torch.randn(tokens, hidden), torch.randn(vocab, hidden)
    labels = torch.randint(0, vocab, (tokens,))
    heads = AutoDecoHeads(AutoDecoConfig(hidden_size=hidden))
    for parameter in heads.parameters():
        parameter.grad = torch.zeros_like(parameter)
    if options.get("train_base"):
        states.requires_grad_(), weight.requires_grad_()
    return lambda: linear_autodeco_loss(states, weight, heads, labels, **options).loss


def memory_case(*sizes: int, **options: Any) -> Callable[[], object]:
    """Forward and backward, the gradients' own memory left out."""
    forward = forward_case(*sizes, **options)
    return lambda: forward().backward()


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, 40),
        ({"train_base": True}, 46),
        # The losses [2, n], and what the caller gets: the sum.
        ({"reduction": "none"}, 40 + 8 + 4),
    ],
)
def test_what_is_kept_until_backward_is_as_documented(options: dict[str, Any], kept: int) -> None:
    few, many = 1000, 5000
    live = [
        live_bytes(forward_case(tokens, 8, 32, chunk_size=100, **options))[-1]
        for tokens in (few, many)
    ]
    assert (live[1] - live[0]) / (many - few) == pytest.approx(kept, abs=0.1) and kept <= 64


def test_the_bytes_of_a_caller_bound_backward_too() -> None:
    tokens, given = 4096, 1 << 20
    peaks = [
        peak_bytes(memory_case(tokens, 64, 64, max_chunk_bytes=number))
        for number in (given, 8 * given)
    ]
    assert peaks[0] <= given + 64 * tokens + (1 << 18) < peaks[1]


@pytest.mark.slow
def test_memory_does_not_grow_with_tokens_times_vocabulary() -> None:
    few, many = 8192, 65536
    assert peak_bytes(memory_case(many, 16, 512)) <= (64 << 20) + 64 * many
    peaks = [peak_bytes(memory_case(tokens, 16, 512, chunk_size=1024)) for tokens in (few, many)]
    # The chunks of backward, which are as even as they can be, differ by a few hundred rows.
    assert peaks[1] - peaks[0] <= 64 * (many - few) + (1 << 20)


@pytest.mark.slow
def test_memory_at_a_real_width_stays_in_its_bound() -> None:
    tokens = 256
    assert peak_bytes(memory_case(tokens, 1024, 151936)) <= (64 << 20) + 64 * tokens


class OwnForward(nn.Linear):
    """Makes its result itself."""

    def forward(self, hidden: Tensor) -> Tensor:
        return 1 * super().forward(hidden)


@pytest.mark.parametrize("given", ["weight", "weight and bias", "module", "own forward", "hook"])
def test_the_products_of_all_chunks_lie_in_the_same_memory(given: str) -> None:
    case = Case(bias="bias" in given or given == "module")
    addresses: list[int] = []
    calls: list[Tensor] = []
    kept: list[Tensor] = []  # so that what is made for a chunk is not where the last one's was

    def see(logits: Tensor) -> Tensor:
        addresses.append(logits.data_ptr())
        kept.append(logits)
        return logits

    if "weight" in given:
        arguments = {"lm_head": case.weight, "bias": case.bias}
    else:
        module = OwnForward(HIDDEN, VOCAB) if given == "own forward" else module_of(case)
        if given == "hook":
            module.register_forward_hook(lambda *_: calls.append(_[-1]))
        arguments = {"lm_head": module}
    case.loss(**arguments, chunk_size=2, logits_transform=see)
    assert len(addresses) == 5
    others_make_it = given in ("own forward", "hook")
    assert len(set(addresses)) == (5 if others_make_it else 1)
    assert len(calls) == (5 if given == "hook" else 0)
