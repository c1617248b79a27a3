"""How ops run on CUDA: graphs, compiled graphs, streams, devices, waiting, memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cuda_tools import (
    SLEEP_CYCLES,
    assert_same,
    capture,
    extra_bytes,
    tensors_of,
    torch_may_not_wait,
    waits_for_the_device,
)
from oracle import make_rows, random_parameters
from torch import Tensor
from torch._dynamo.utils import counters

import autodeco_ext
from autodeco_ext import AutoDecoConfig, AutoDecoHeads

Arguments = dict[str, Tensor]

HIDDEN_SIZE = 16
HEADS: dict[torch.device, AutoDecoHeads] = {}  # made before a graph is captured or compiled


def make_heads_on(device: torch.device) -> None:
    """The same weights on every device, large enough that T and P depend on the row."""
    if device not in HEADS:
        heads = AutoDecoHeads(AutoDecoConfig(hidden_size=HIDDEN_SIZE))
        random = torch.Generator().manual_seed(5)
        for parameter in heads.parameters():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=random)
        HEADS[device] = heads.to(device)


def arguments(
    device: torch.device,
    rows: int = 12,
    vocab: int = 32_003,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Arguments:
    """Logits and every parameter per row, in the dtypes that the kernels read."""
    make_heads_on(device)
    random = torch.Generator().manual_seed(seed)
    given = {
        "logits": make_rows("gaussian", rows, vocab, dtype, random),
        **random_parameters(rows, vocab, seed=seed + 1),
        "seed": torch.randint(-(2**62), 2**62, (rows,), generator=random),
        "offset": torch.arange(rows) + seed,
    }
    return {name: value.to(device) for name, value in given.items()}


def filters(given: Arguments) -> Arguments:
    return {name: value for name, value in given.items() if name not in ("seed", "offset")}


def decode_step(given: Arguments) -> autodeco_ext.DecodeStep:
    predicted = ("logits", "temperature", "top_p")
    others = {name: value for name, value in given.items() if name not in predicted}
    logits = given["logits"]
    return autodeco_ext.decode_step(
        logits[..., :HIDDEN_SIZE], logits, HEADS[logits.device], **others, return_info=True
    )


def labels_of(given: Arguments) -> Tensor:
    return given["seed"].remainder(given["logits"].shape[-1])


def row_losses(given: Arguments) -> autodeco_ext.reference.AutoDecoLoss:
    """Without dropped tokens, which are drawn. The kernel computes gradients in any case."""
    logits = given["logits"]
    return autodeco_ext.autodeco_loss(
        logits,
        given["temperature"],
        given["top_p"].clamp(max=1),
        labels_of(given),
        easy_token_drop=0.0,
        reduction="none",
    )


def gradient_of_logits(
    logits: Tensor, temperature: Tensor, top_p: Tensor, labels: Tensor
) -> Tensor:
    """The op that backward calls, with the released options: a graph has no autograd inside."""
    counted = torch.ones(2, *labels.shape, dtype=torch.bool, device=labels.device)
    options = (False, False, 30.0, 0.01, 1e-8, 1e-9, 1e-9)
    return torch.ops.autodeco_ext.autodeco_loss_logits_gradient(
        logits, temperature, top_p, labels, counted, counted.float(), *options
    )


# Each takes everything and uses what it knows.
CALLS: dict[str, Callable[[Arguments], Any]] = {
    "sample": lambda given: autodeco_ext.sample(**given),
    "sample_with_info": lambda given: autodeco_ext.sample(**given, return_info=True),
    "sample_many": lambda given: autodeco_ext.sample(**given, num_samples=5),
    "filter_logits": lambda given: autodeco_ext.filter_logits(**filters(given)),
    "distribution_stats": lambda given: autodeco_ext.distribution_stats(
        given["logits"], given["temperature"]
    ),
    "kept_indices": lambda given: autodeco_ext.kept_indices(**filters(given), capacity=20_000),
    "decode_step": decode_step,
    "autodeco_loss": row_losses,
    "autodeco_loss_logits_gradient": lambda given: gradient_of_logits(
        given["logits"], given["temperature"], given["top_p"].clamp(max=1), labels_of(given)
    ),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("rows", [1, 12])
def test_the_calls_below_see_their_inputs(name: str, rows: int) -> None:
    """On the CPU: what they are run with on CUDA is valid, and results show what is read."""
    results = []
    for seed in (1, 2):
        given = arguments(torch.device("cpu"), rows, seed=seed)
        results.append([tensor.clone() for tensor in tensors_of(CALLS[name](given))])
        assert not any(tensor.isnan().any() for tensor in results[-1])
    assert not torch.equal(results[0][0], results[1][0])


@pytest.fixture(params=CALLS)
def call(request: pytest.FixtureRequest, cuda: torch.device) -> Callable[[Arguments], Any]:
    return CALLS[request.param]


# CUDA graphs and compiled graphs.


@pytest.mark.parametrize("rows", [1, 12, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_graph_replays_with_what_its_inputs_hold_by_then(
    cuda: torch.device, call: Callable[[Arguments], Any], rows: int, dtype: torch.dtype
) -> None:
    given = arguments(cuda, rows, dtype=dtype)
    graph, result = capture(lambda: call(given))
    seen = []
    for seed in range(1, 5):
        for name, value in arguments(cuda, rows, dtype=dtype, seed=seed).items():
            given[name].copy_(value)
        graph.replay()
        assert_same(result, call(given))
        seen.append([tensor.clone() for tensor in tensors_of(result)])
    assert not torch.equal(seen[0][0], seen[1][0])


def test_each_parameter_alone_may_change_between_replays(cuda: torch.device) -> None:
    given = arguments(cuda, 300)
    graph, tokens = capture(lambda: autodeco_ext.sample(**given))
    others = arguments(cuda, 300, seed=9)
    for name in given:
        graph.replay()
        before = tokens.clone()
        given[name].copy_(others[name])
        graph.replay()
        assert not torch.equal(tokens, before), name
        assert torch.equal(tokens, autodeco_ext.sample(**given)), name


def test_a_graph_without_seeds_draws_anew_at_every_replay(cuda: torch.device) -> None:
    logits = torch.zeros(64, 1000, device=cuda)
    graph, tokens = capture(lambda: autodeco_ext.sample(logits))
    graph.replay()
    first = tokens.clone()
    graph.replay()
    assert not torch.equal(tokens, first)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_step_gives_what_an_eager_one_gives(cuda: torch.device, mode: str) -> None:
    def step(given: Arguments) -> tuple[Tensor, ...]:
        scaled = given | {"logits": given["logits"] * 2}
        return tuple(tensor + 0 for run in CALLS.values() for tensor in tensors_of(run(scaled)))

    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(step, fullgraph=True, mode=mode)
    for seed in range(6):
        given = arguments(cuda, 12, 4001, seed=seed)
        torch.compiler.cudagraph_mark_step_begin()
        got = [tensor.clone() for tensor in compiled(given)]
        assert_same(tuple(got), step(given))
    assert counters["inductor"]["cudagraph_skips"] == 0


# Streams and devices.


def stale_and_fresh(device: torch.device) -> tuple[Tensor, Tensor]:
    """Logits whose result is token 3 in every row, and such of token 4000."""
    make_heads_on(device)
    stale, fresh = torch.full((2, 5, 5000), -9.0, device=device)
    stale[:, 3], fresh[:, 4000] = 9.0, 9.0
    return stale, fresh


def step_of_logits(logits: Tensor) -> Tensor:
    step = autodeco_ext.decode_step(
        logits[..., :HIDDEN_SIZE], logits, HEADS[logits.device], top_p=0.9, seed=1
    )
    return torch.stack([step.tokens.float(), step.temperature])


def with_halves(logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logits, T, P, labels."""
    halves = torch.full(logits.shape[:-1], 0.5, device=logits.device)
    return logits, halves, halves, torch.full_like(halves, 4000, dtype=torch.int64)


def loss_of_logits(logits: Tensor) -> Tensor:
    return autodeco_ext.autodeco_loss(
        *with_halves(logits), easy_token_drop=0.0, reduction="none"
    ).loss


OF_LOGITS: dict[str, Callable[[Tensor], Tensor]] = {
    "sample": lambda logits: autodeco_ext.sample(logits, 0.5, 0.9, seed=1),
    "filter_logits": lambda logits: autodeco_ext.filter_logits(logits, 0.5, 0.9).argmax(-1),
    "distribution_stats": lambda logits: autodeco_ext.distribution_stats(logits, 0.5),
    "kept_indices": lambda logits: autodeco_ext.kept_indices(logits, 0.5, 0.9, capacity=9000).ids,
    "kept_indices_of_any_number": lambda logits: autodeco_ext.kept_indices(logits, 0.5, 0.9).ids,
    "decode_step": step_of_logits,
    "autodeco_loss": loss_of_logits,
    "autodeco_loss_logits_gradient": lambda logits: gradient_of_logits(*with_halves(logits)),
}


@pytest.mark.parametrize("name", OF_LOGITS)
def test_stale_logits_would_be_seen(name: str) -> None:
    stale, fresh = stale_and_fresh(torch.device("cpu"))
    fresh[0] *= 0.01
    assert not torch.equal(OF_LOGITS[name](stale), OF_LOGITS[name](fresh))


def assert_runs_on_the_current_stream(op: Callable[[Tensor], Tensor], device: torch.device) -> None:
    logits, fresh = stale_and_fresh(device)
    fresh[0] *= 0.01  # statistics that differ from the stale ones
    expected = op(fresh)
    assert not torch.equal(op(logits), expected)
    torch.cuda.synchronize(device)
    side = torch.cuda.Stream(device)
    with torch.cuda.stream(side):
        torch.cuda._sleep(SLEEP_CYCLES)
        logits.copy_(fresh)
        result = op(logits)  # on any other stream it would read what was there before
    side.synchronize()
    assert torch.equal(result, expected)


@pytest.mark.parametrize("name", OF_LOGITS)
def test_an_op_runs_on_the_current_stream(cuda: torch.device, name: str) -> None:
    assert_runs_on_the_current_stream(OF_LOGITS[name], cuda)


@pytest.fixture
def other_device(cuda: torch.device) -> torch.device:
    if torch.cuda.device_count() < 2:
        pytest.skip("cuda: there is one device, two are needed")
    return torch.device("cuda", (cuda.index + 1) % torch.cuda.device_count())


def test_logits_may_be_on_a_device_that_is_not_current(
    cuda: torch.device, other_device: torch.device, call: Callable[[Arguments], Any]
) -> None:
    expected = tensors_of(call(arguments(cuda)))
    got = tensors_of(call(arguments(other_device)))
    assert torch.cuda.current_device() == cuda.index
    assert all(tensor.device == other_device for tensor in got)
    assert_same(tuple(x.cpu() for x in got), tuple(x.cpu() for x in expected))
    bad = arguments(other_device)
    bad["temperature"][2] = -1
    with pytest.raises(ValueError, match="-1 in row 2"):
        autodeco_ext.sample(**bad, check=True)


@pytest.mark.parametrize("name", OF_LOGITS)
def test_the_stream_is_that_of_the_logits_device(other_device: torch.device, name: str) -> None:
    assert_runs_on_the_current_stream(OF_LOGITS[name], other_device)


# Waiting and memory.


def test_nothing_waits_for_the_device(cuda: torch.device, call: Callable[[Arguments], Any]) -> None:
    given = arguments(cuda, 64)

    def strict() -> Any:
        with torch_may_not_wait():
            return call(given)

    assert not waits_for_the_device(strict)


@pytest.mark.parametrize("seed", [None, 3])
def test_scalars_and_missing_seeds_do_not_wait_either(cuda: torch.device, seed: int | None) -> None:
    logits = arguments(cuda, 64)["logits"]

    def strict() -> Any:
        with torch_may_not_wait():
            return autodeco_ext.sample(logits, 0.9, 0.9, 50, seed=seed, return_info=True)

    assert not waits_for_the_device(strict)


def test_looking_at_the_rows_waits(cuda: torch.device) -> None:
    """Also shows that the tests above would notice."""
    given = arguments(cuda, 64)
    assert waits_for_the_device(lambda: autodeco_ext.sample(**given, check=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 64, 512])
def test_extra_memory_is_one_percent_of_the_logits_or_one_mebibyte(
    cuda: torch.device, call: Callable[[Arguments], Any], rows: int, dtype: torch.dtype
) -> None:
    given = arguments(cuda, rows, 8)
    given["logits"] = torch.randn(rows, 151_936, device=cuda, dtype=dtype)
    limit = max(given["logits"].nbytes // 100, 2**20)
    assert extra_bytes(lambda: call(given)) <= limit


@pytest.mark.parametrize("name", ["autodeco_loss", "autodeco_loss_logits_gradient"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 64, 512])
def test_extra_memory_of_a_loss_does_not_grow_with_the_vocabulary(
    cuda: torch.device, name: str, rows: int, dtype: torch.dtype
) -> None:
    given = arguments(cuda, rows, 8)
    given["logits"] = torch.randn(rows, 151_936, device=cuda, dtype=dtype)
    assert extra_bytes(lambda: CALLS[name](given)) <= 64 * rows + 1024


def test_the_look_at_memory_sees_a_copy_of_the_logits(cuda: torch.device) -> None:
    logits = torch.zeros(64, 151_936, device=cuda)
    assert extra_bytes(lambda: (logits + 1).argmax(-1)) >= logits.nbytes
