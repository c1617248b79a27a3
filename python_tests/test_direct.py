"""The call without the dispatcher: taken for plain tensors, by nobody who would notice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import autodeco_ext
from autodeco_ext import _direct

ROWS, VOCAB = 3, 40


def _logits(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return (3 * torch.randn(ROWS, VOCAB, generator=generator)).to(dtype)


def _seeds() -> torch.Tensor:
    return torch.arange(ROWS)


def _sample(logits: torch.Tensor) -> torch.Tensor:
    return autodeco_ext.sample(logits, 0.8, 0.9, seed=_seeds())


def _dispatched(monkeypatch: pytest.MonkeyPatch, **arguments: object) -> torch.Tensor:
    with monkeypatch.context() as patch:
        patch.setattr(_direct, "_TAKES_TENSORS", False)
        return autodeco_ext.sample(**arguments)


@pytest.fixture
def direct_calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each call of `sample` was direct."""
    calls: list[bool] = []
    original = autodeco_ext.ops.sample_directly

    def record(*arguments: object) -> torch.Tensor | None:
        tokens = original(*arguments)
        calls.append(tokens is not None)
        return tokens

    monkeypatch.setattr(autodeco_ext.ops, "sample_directly", record)
    return calls


PLAIN = {
    "scalars": {"temperature": 0.7, "top_p": 0.9, "top_k": 20, "min_p": 0.01, "seed": 3},
    "per row": {
        "temperature": torch.tensor([0.0, 0.7, 1.5]),
        "top_p": torch.tensor([1.0, 0.9, 0.2]),
        "top_k": torch.tensor([0, 20, 3]),
        "min_p": torch.tensor([0.0, 0.01, 0.1]),
        "valid_vocab": torch.tensor([40, 30, 20]),
        "seed": torch.tensor([-1, 0, 1]),
        "offset": torch.tensor([7, 8, 9]),
    },
    "one seed, offset per row": {"seed": 3, "offset": torch.tensor([7, 8, 9])},
    "seed per row, one offset": {"seed": torch.tensor([7, 8, 9]), "offset": 3},
    "defaults": {"seed": 1},
    "integers": {"temperature": 0, "top_p": 1, "min_p": 0, "seed": 1},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("given", PLAIN.values(), ids=PLAIN)
def test_gives_the_tokens_of_the_registered_op(given, dtype, direct_calls, monkeypatch):
    wide = torch.zeros(ROWS, VOCAB + 8, dtype=dtype)
    wide[:, :VOCAB] = _logits(dtype)
    for logits in (_logits(dtype), wide[:, :VOCAB], wide[:, :VOCAB].clone()[:1].expand(ROWS, -1)):
        tokens = autodeco_ext.sample(logits, **given)
        expected = _dispatched(monkeypatch, logits=logits, **given)
        assert tokens.tolist() == expected.tolist()
        assert tokens.dtype == torch.int64 and tokens.is_contiguous()
        assert tokens.is_inference() == expected.is_inference()
    assert direct_calls == [True, False] * 3


def test_one_row_without_leading_dimensions(direct_calls, monkeypatch):
    logits = _logits()[0]
    for seed in (5, torch.tensor(5)):
        tokens = autodeco_ext.sample(logits, torch.tensor(0.7), seed=seed)
        assert tokens.shape == ()
        assert tokens == _dispatched(
            monkeypatch, logits=logits, temperature=torch.tensor(0.7), seed=seed
        )
    assert direct_calls[0] and direct_calls[2]


def test_the_generator_advances_alike(direct_calls, monkeypatch):
    logits = _logits()
    draws = []
    for call in (autodeco_ext.sample, lambda **given: _dispatched(monkeypatch, **given)):
        generator = torch.Generator().manual_seed(11)
        draws.append([call(logits=logits, generator=generator).tolist() for _ in range(3)])
    # A temperature that is declined must not cost a second draw of seeds.
    generator = torch.Generator().manual_seed(11)
    draws.append(
        [
            autodeco_ext.sample(
                logits, torch.ones(ROWS, dtype=torch.float64), generator=generator
            ).tolist()
            for _ in range(3)
        ]
    )
    assert draws[0] == draws[1] == draws[2]
    assert direct_calls == [True] * 3 + [False] * 6


def test_inference_mode(direct_calls):
    with torch.inference_mode():
        assert _sample(_logits()).is_inference()
    assert direct_calls == [True]


DECLINED = {
    "dtype": {"temperature": torch.ones(ROWS, dtype=torch.float64)},
    "broadcast": {"temperature": torch.ones(1)},
    "stride": {"temperature": torch.ones(2 * ROWS)[::2]},
    "scalar of numpy": {"temperature": np.float32(1)},
    "seed beyond int64": {"seed": 1 << 63},
    "parameter": {"temperature": torch.nn.Parameter(torch.ones(ROWS))},
    "lazily negated": {"top_p": torch._neg_view(-torch.ones(ROWS))},
    "off": {"top_p": float("inf")},
}


@pytest.mark.parametrize("given", DECLINED.values(), ids=DECLINED)
def test_what_is_unusual_is_left_to_the_registered_op(given, direct_calls):
    given = {"seed": 3, **given}
    tokens = autodeco_ext.sample(_logits(), **given)
    plain = autodeco_ext.sample(_logits(), seed=given["seed"])
    assert tokens.tolist() == plain.tolist()
    assert direct_calls[0] is False


def test_lazy_logits(direct_calls):
    logits = _logits()
    negated = torch.complex(torch.zeros_like(logits), -logits).conj().imag
    assert negated.is_neg()
    assert _sample(negated).tolist() == _sample(logits).tolist()
    zeros = torch._efficientzerotensor((ROWS, VOCAB))
    functional = torch._to_functional_tensor(logits)
    for lazy in (negated, zeros, functional):
        assert autodeco_ext.ops.sample_directly(lazy, *[None] * 5, _seeds(), None) is None
    assert direct_calls[:2] == [False, True]


def test_more_rows_than_one_thread_takes_are_left_to_torchs_threads(direct_calls):
    many = _logits().repeat(400, 1)
    assert autodeco_ext.sample(many, seed=1).shape == (3 * 400,)
    assert direct_calls == [False]


def test_modes_see_the_call(direct_calls):
    class Functions(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    class Dispatches(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    logits = _logits()
    for mode in (Functions, Dispatches):
        seen: list[str] = []
        with mode():
            _sample(logits)
        assert any("autodeco_ext.sample" in name for name in seen), seen
    assert not any(direct_calls)


def test_subclasses_see_the_call(direct_calls):
    class Wrapper(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return super().__torch_function__(func, types, args, kwargs or {})

    seen: list[str] = []
    _sample(_logits().as_subclass(Wrapper))
    assert any("autodeco_ext.sample" in name for name in seen), seen
    assert not any(direct_calls)


def test_the_profiler_sees_the_call(direct_calls):
    with torch.profiler.profile() as profile:
        _sample(_logits())
    assert "autodeco_ext::sample" in {event.key for event in profile.key_averages()}
    assert direct_calls == [False]


def test_tracers_see_the_call(direct_calls):
    logits = _logits()
    graph = make_fx(_sample)(logits)
    assert "autodeco_ext.sample" in graph.code
    traced = torch.jit.trace(_sample, logits, check_trace=False)
    assert "autodeco_ext::sample" in str(traced.graph)
    with FakeTensorMode() as mode:
        assert _sample(mode.from_tensor(logits)).shape == (ROWS,)
    assert not any(direct_calls)


def test_function_transforms_are_left_to_the_dispatcher(direct_calls):
    logits = _logits()
    torch.func.functionalize(_sample)(logits)
    torch.func.grad(lambda values: (_sample(values) * 0.0 + values.sum()).sum())(logits)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert _sample(logits).tolist() == _sample(logits.clone()).tolist()
    assert direct_calls[:2] == [False, False]


def test_an_integer_that_no_double_can_hold_is_not_a_value(direct_calls):
    with pytest.raises(ValueError, match="in the range of a float"):
        autodeco_ext.sample(_logits(), top_p=10**400, seed=1)
    assert direct_calls == [False]


@pytest.mark.parametrize("name", ["temperature", "top_p"])
def test_none_is_no_temperature_and_no_top_p(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} must be a number or a tensor, got NoneType"):
        autodeco_ext.sample(_logits(), **{name: None}, seed=1)
