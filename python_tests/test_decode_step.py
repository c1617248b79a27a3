"""`decode_step`: the heads and the draw in one call."""

from __future__ import annotations

import functools
from typing import Any

import heads_case
import pytest
import torch
from cuda_tools import (
    assert_same,
    capture,
    extra_bytes,
    torch_may_not_wait,
    waits_for_the_device,
)
from heads_case import HIDDEN
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

import autodeco_ext

# Predictions that differ from row to row, as trained heads have.
make_heads = functools.partial(heads_case.make_heads, scale=2.0)
make_input = functools.partial(heads_case.make_input, vocab=500, kind="gaussian")


def same(got: Any, expected: Any) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(got, expected, strict=True) if isinstance(a, torch.Tensor)
    )


@pytest.mark.parametrize("enhanced", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_step_is_the_prediction_and_then_the_draw(backend: str, dtype, enhanced: bool) -> None:
    heads = make_heads(use_enhanced_features=enhanced)
    hidden, logits = make_input(40, dtype=dtype)
    options = {"top_k": 300, "min_p": 1e-4, "seed": 5, "valid_vocab": 480, "return_info": True}
    step = autodeco_ext.decode_step(hidden, logits, heads, **options)
    drawn = autodeco_ext.sample(logits, step.temperature, step.top_p, **options)
    assert same(step.info, drawn) and torch.equal(step.tokens, drawn.tokens)
    # Hundreds of tokens to choose from: without its own T and P a row would draw another one.
    assert step.temperature.std() > 0.1 and step.top_p.std() > 0.01
    expected = heads.predict(hidden, logits)
    torch.testing.assert_close(step.temperature, expected.temperature, rtol=0, atol=2e-6)
    torch.testing.assert_close(step.top_p, expected.top_p, rtol=0, atol=2e-6)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (0,), (2, 0, 3)])
def test_leading_dimensions_are_kept(backend: str, shape: tuple[int, ...]) -> None:
    hidden, logits = make_input(*shape)
    step = autodeco_ext.decode_step(hidden, logits, make_heads(), seed=1)
    assert step.tokens.shape == step.temperature.shape == step.top_p.shape == shape
    assert step.tokens.dtype == torch.int64 and step.info is None
    flat = autodeco_ext.decode_step(
        hidden.reshape(-1, HIDDEN), logits.reshape(-1, 500), make_heads(), seed=1
    )
    assert torch.equal(step.tokens.flatten(), flat.tokens)


def test_a_sliced_view_gives_what_its_copy_gives(backend: str) -> None:
    hidden, logits = make_input(8, 3)
    wide = torch.full((8, 3, 700), torch.nan)
    wide[..., 100:600] = logits
    view = (hidden[::2, 1:], wide[::2, 1:, 100:600])
    step = autodeco_ext.decode_step(*view, make_heads(), seed=1)
    copy = autodeco_ext.decode_step(*(part.contiguous() for part in view), make_heads(), seed=1)
    assert same(step, copy)


def test_a_given_value_takes_the_place_of_the_predicted_one(backend: str) -> None:
    heads = make_heads()
    hidden, logits = make_input(6)
    predicted = autodeco_ext.decode_step(hidden, logits, heads, seed=2)
    temperature = torch.linspace(0.3, 1.2, 6, dtype=torch.float64)
    step = autodeco_ext.decode_step(hidden, logits, heads, temperature=temperature, seed=2)
    # As in generate: the top-p head reads the temperature that its sibling predicts.
    assert torch.equal(step.temperature, temperature.float())
    assert torch.equal(step.top_p, predicted.top_p)
    drawn = autodeco_ext.sample(logits, temperature, predicted.top_p, seed=2)
    assert torch.equal(step.tokens, drawn)
    step = autodeco_ext.decode_step(hidden, logits, heads, top_p=0.5, seed=2)
    assert torch.equal(step.temperature, predicted.temperature)
    assert step.top_p.tolist() == [0.5] * 6 and step.top_p.dtype == torch.float32
    greedy = autodeco_ext.decode_step(hidden, logits, heads, temperature=0, top_p=0.9)
    assert torch.equal(greedy.tokens, logits.argmax(-1))
    assert greedy.temperature.tolist() == [0.0] * 6


def test_a_head_whose_value_is_given_is_not_asked(backend: str) -> None:
    heads = make_heads()
    hidden, logits = make_input(6)
    expected = autodeco_ext.decode_step(hidden, logits, heads, top_p=0.8, seed=2)
    with torch.no_grad():
        for parameter in heads.top_p_head.parameters():
            parameter.fill_(torch.nan)
    assert same(autodeco_ext.decode_step(hidden, logits, heads, top_p=0.8, seed=2), expected)
    given = {"temperature": 0.9, "top_p": 0.8, "seed": 2}
    step = autodeco_ext.decode_step(torch.full_like(hidden, torch.nan), logits, heads, **given)
    assert torch.equal(step.tokens, autodeco_ext.sample(logits, **given))


def test_heads_that_are_off_draw_with_one(backend: str) -> None:
    hidden, logits = make_input(6)
    heads = make_heads(enable_temperature_head=False, enable_top_p_head=False)
    step = autodeco_ext.decode_step(hidden, logits, heads, seed=3)
    assert torch.equal(step.tokens, autodeco_ext.sample(logits, seed=3))
    assert step.temperature.tolist() == step.top_p.tolist() == [1.0] * 6


def test_no_output_has_a_gradient_and_inference_mode_agrees(device) -> None:
    heads = make_heads(device)
    hidden, logits = make_input(6, device=device)
    tracked = (hidden.clone().requires_grad_(), logits.clone().requires_grad_())
    step = autodeco_ext.decode_step(*tracked, heads, seed=4, return_info=True)
    values = (step.temperature, step.top_p, step.info.logprobs)
    assert not any(value.requires_grad for value in values)
    with torch.inference_mode():
        inferred = autodeco_ext.decode_step(hidden, logits, heads, seed=4, return_info=True)
    assert same(inferred, step) and same(inferred.info, step.info)


class Operations(TorchDispatchMode):
    """Records what works on data; views are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        name = func.overloadpacket.__name__
        if name not in ("t", "slice", "detach"):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


PREDICTED = ["mm", "mm", "predict_parameters"]
SEEDS = "randint"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"seed": 1}, [*PREDICTED, "sample"]),
        ({}, [*PREDICTED, SEEDS, "sample"]),
        ({"seed": 1, "temperature": 0.9}, [*PREDICTED, "sample", "full"]),
        ({"temperature": 0.9}, [*PREDICTED, SEEDS, "sample", "full"]),
        ({"seed": 1, "top_p": 0.9}, ["mm", "predict_parameters", "sample", "full"]),
        ({"top_p": 0.9}, ["mm", "predict_parameters", SEEDS, "sample", "full"]),
    ],
)
def test_a_step_is_the_operations_that_the_docs_name(dtype, options, names) -> None:
    """Each is a kernel on CUDA; the products may be more, as cuBLAS decides."""
    heads = make_heads()
    hidden, logits = make_input(3, dtype=dtype)
    with Operations() as operations:
        autodeco_ext.decode_step(hidden, logits, heads, **options)
    converted = [] if dtype == torch.float32 else ["_to_copy"]
    assert operations.names == converted + names


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_full_graph_compile_draws_the_same_tokens(device, dtype: torch.dtype) -> None:
    heads = make_heads(device)
    hidden, logits = make_input(2, 3, dtype=dtype, device=device)

    def step(h: torch.Tensor, x: torch.Tensor, seed: torch.Tensor) -> Any:
        first = autodeco_ext.decode_step(h, x, heads, seed=seed, return_info=True)
        second = autodeco_ext.decode_step(h, x, heads, temperature=0.7, seed=seed)
        return first.tokens, first.temperature, first.info.kept, second.tokens, second.top_p

    seed = torch.arange(6, device=device).reshape(2, 3)
    expected = step(hidden, logits, seed)
    got = torch.compile(step, fullgraph=True)(hidden, logits, seed)
    for value, wanted in zip(got, expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=0, atol=1e-6)


def test_invalid_rows_are_named_or_visible(backend: str) -> None:
    heads = make_heads()
    hidden, logits = make_input(4)
    expected = autodeco_ext.decode_step(hidden, logits, heads, seed=1, return_info=True)
    hidden[1, 3], logits[2, 5] = torch.nan, torch.nan
    for given in ({}, {"temperature": 0.7}, {"top_p": 0.9}):
        text = "hidden_states must give a temperature that is finite and >= 0, got nan in row 1"
        with pytest.raises(ValueError, match=f"^autodeco_ext.decode_step: {text}$"):
            autodeco_ext.decode_step(hidden, logits, heads, seed=1, **given)
    only_top_p = make_heads(enable_temperature_head=False)
    with pytest.raises(ValueError, match=r"hidden_states must give a top_p that is a number, got"):
        autodeco_ext.decode_step(hidden[:2], logits[:2], only_top_p, seed=1)
    with pytest.raises(ValueError, match=r"logits must not contain NaN, got NaN in row 0"):
        autodeco_ext.decode_step(hidden[2:], logits[2:], heads, seed=1)
    step = autodeco_ext.decode_step(hidden, logits, heads, seed=1, return_info=True, check=False)
    assert step.info.valid.tolist() == [True, False, False, True]
    assert step.tokens[1:3].tolist() == [-1, -1]
    assert torch.equal(step.tokens[[0, 3]], expected.tokens[[0, 3]])
    assert step.top_p[1:3].isnan().all()


def test_an_invalid_row_that_only_the_draw_sees_is_named(backend: str) -> None:
    heads = make_heads(use_enhanced_features=False)
    hidden, logits = make_input(3)
    logits[1] = -torch.inf
    with pytest.raises(
        ValueError, match=r"^autodeco_ext.decode_step: logits must .* finite .* row"
    ):
        autodeco_ext.decode_step(hidden, logits, heads, seed=1)


def test_torch_seeds_reproduce_a_step(device) -> None:
    heads = make_heads(device)
    hidden, logits = make_input(50, device=device)
    torch.manual_seed(7)
    first = autodeco_ext.decode_step(hidden, logits, heads)
    second = autodeco_ext.decode_step(hidden, logits, heads)
    torch.manual_seed(7)
    assert same(autodeco_ext.decode_step(hidden, logits, heads), first)
    assert not torch.equal(first.tokens, second.tokens)


LOGITS = torch.zeros(2, 9)
STATES = torch.zeros(2, HIDDEN)


@pytest.mark.parametrize(
    ("hidden", "logits", "options", "error", "text"),
    [
        (
            torch.zeros(2, HIDDEN - 1),
            LOGITS,
            {},
            ValueError,
            r"decode_step: hidden_states must have shape \[..., 48\] \(the heads' hidden_size\)",
        ),
        (
            torch.zeros(3, HIDDEN),
            LOGITS,
            {},
            ValueError,
            r"decode_step: logits must have shape \[3, vocab\] to go with hidden_states, got \[2",
        ),
        (STATES, [[0.0]], {}, TypeError, "decode_step: logits must be a torch.Tensor, got list"),
        (
            STATES.to("meta"),
            LOGITS,
            {},
            ValueError,
            "decode_step: hidden_states must be on cpu like the heads, got meta",
        ),
        (
            STATES,
            LOGITS,
            {"temperature": -1.0},
            ValueError,
            "decode_step: temperature must be finite and >= 0, got -1.0",
        ),
        (
            STATES,
            LOGITS,
            {"top_p": torch.zeros(3)},
            ValueError,
            r"decode_step: top_p must have a shape that broadcasts to \[2\], got \[3\]",
        ),
        (STATES, LOGITS, {"top_k": -1}, ValueError, "decode_step: top_k must be >= 0, got -1"),
        (STATES, LOGITS, {"check": 1}, TypeError, "decode_step: check must be a bool or None"),
        (
            STATES,
            LOGITS,
            {"return_info": "no"},
            TypeError,
            "decode_step: return_info must be a bool, got 'no'",
        ),
        (STATES, LOGITS.double(), {}, ValueError, "decode_step: logits must be float32"),
        (
            STATES,
            torch.zeros(9, 2).t(),
            {},
            ValueError,
            "decode_step: logits must have a vocabulary stride of 1, got 2",
        ),
    ],
)
def test_bad_input_is_explained(hidden, logits, options, error, text: str) -> None:
    with pytest.raises(error, match="^autodeco_ext." + text):
        autodeco_ext.decode_step(hidden, logits, make_heads(), **options)


def test_something_that_is_not_heads_is_refused() -> None:
    with pytest.raises(
        TypeError, match=r"^autodeco_ext.decode_step: heads must be an AutoDecoHeads, got Linear$"
    ):
        autodeco_ext.decode_step(STATES, LOGITS, torch.nn.Linear(2, 2))


# On CUDA alone: kernels, waiting, graphs, memory.


def cuda_step(device: torch.device, rows: int, dtype: torch.dtype = torch.float32) -> Any:
    """A call of decode_step, and its inputs, which may be changed in place."""
    heads = make_heads(device)
    hidden, logits = make_input(rows, vocab=32_003, dtype=dtype, device=device)
    seeds = torch.arange(rows, device=device)
    inputs = {"hidden_states": hidden, "logits": logits, "seed": seeds}

    def call() -> autodeco_ext.DecodeStep:
        return autodeco_ext.decode_step(**inputs, heads=heads, return_info=True)

    return call, inputs


@pytest.mark.parametrize("rows", [1, 64])
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 4), (torch.bfloat16, 5)])
def test_a_step_on_cuda_takes_five_kernels(cuda, rows: int, dtype: torch.dtype, most: int) -> None:
    call, _ = cuda_step(cuda, rows, dtype)
    call()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
        torch.cuda.synchronize()
    on_device = torch.autograd.DeviceType.CUDA
    names = [event.name for event in profile.events() if event.device_type == on_device]
    assert 2 <= len(names) <= most, names


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_on_cuda_does_not_wait(cuda, dtype: torch.dtype) -> None:
    call, _ = cuda_step(cuda, 64, dtype)

    def strict() -> Any:
        with torch_may_not_wait():
            return call()

    assert not waits_for_the_device(strict)


@pytest.mark.parametrize("rows", [1, 12, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cuda_graph_of_a_step_replays_with_new_inputs(cuda, rows: int, dtype) -> None:
    call, inputs = cuda_step(cuda, rows, dtype)
    graph, result = capture(call)
    seen = []
    for _ in range(4):
        for name in ("hidden_states", "logits"):
            inputs[name].copy_(inputs[name].roll(1, -1))
        inputs["seed"] += 1
        graph.replay()
        assert_same(result, call())
        seen.append(result.temperature.clone())
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.slow
def test_a_compiled_step_on_cuda_is_one_graph(cuda) -> None:
    call, _ = cuda_step(cuda, 12)
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(lambda: call().tokens + 0, fullgraph=True, mode="reduce-overhead")
    for _ in range(4):
        assert torch.equal(compiled(), call().tokens)
    assert counters["inductor"]["cudagraph_skips"] == 0


def test_a_step_on_cuda_holds_little_memory(cuda) -> None:
    call, inputs = cuda_step(cuda, 512)
    inputs["logits"] = torch.randn(512, 151_936, device=cuda)
    assert extra_bytes(call) <= inputs["logits"].nbytes // 100
