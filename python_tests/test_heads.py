"""AutoDecoHeads: names and shapes, precision, gradients, heads that are off, bad input."""

from __future__ import annotations

import copy

import pytest
import torch

from autodeco_ext import reference
from autodeco_ext.models import AutoDecoConfig, AutoDecoHeads, HeadOutput

NAMES = [
    f"{head}.mlp.{layer}.{kind}"
    for head in ("temp_head", "top_p_head")
    for layer in (0, 2)
    for kind in ("weight", "bias")
]


def make_heads(hidden_size: int = 64, seed: int = 0, device="cpu", **options) -> AutoDecoHeads:
    torch.manual_seed(seed)
    return AutoDecoHeads(AutoDecoConfig(hidden_size=hidden_size, **options)).to(device)


def make_input(
    *shape: int, hidden_size: int = 64, vocab: int = 101, dtype=torch.float32, device="cpu"
):
    random = torch.Generator().manual_seed(1)
    hidden = torch.randn(*shape, hidden_size, generator=random)
    logits = 3 * torch.randn(*shape, vocab, generator=random)
    return hidden.to(device, dtype), logits.to(device, dtype)


def test_parameters_have_the_released_names_and_shapes() -> None:
    shapes = {name: list(value.shape) for name, value in make_heads().state_dict().items()}
    widths = [[256, 64], [256], [1, 256], [1], [256, 69], [256], [1, 256], [1]]
    assert shapes == dict(zip(NAMES, widths, strict=True))
    plain = make_heads(use_enhanced_features=False, temperature_hidden_size=8, top_p_hidden_size=16)
    assert list(plain.top_p_head.mlp[0].weight.shape) == [16, 65]
    assert list(plain.temp_head.mlp[0].weight.shape) == [8, 64]


@pytest.mark.parametrize("enhanced", [True, False])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (0,), (2, 0, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_predictions_are_those_of_the_reference(device, shape, enhanced: bool, dtype) -> None:
    heads = make_heads(device=device, use_enhanced_features=enhanced)
    hidden, logits = make_input(*shape, dtype=dtype, device=device)
    got = heads(hidden, logits)
    assert isinstance(got, HeadOutput)
    expected = reference.head_predictions(
        hidden.double(), logits, heads.state_dict(), enhanced=enhanced
    )
    for name in ("temperature", "top_p"):
        value = getattr(got, name)
        assert value.shape == shape and value.dtype == torch.float32
        torch.testing.assert_close(
            value.double(), getattr(expected, name), rtol=0, atol=1e-6, msg=name
        )


def test_a_new_module_predicts_near_one_and_one_half() -> None:
    hidden, logits = make_input(200)
    got = make_heads()(hidden, logits)
    assert (got.temperature - 1).abs().max() < 0.6
    assert abs(got.temperature.mean().item() - 1) < 0.2
    assert abs(got.top_p.mean().item() - 0.5) < 0.2


def test_a_vocabulary_of_one_and_a_sliced_view_are_accepted(device) -> None:
    heads = make_heads(device=device)
    hidden, logits = make_input(4, device=device)
    one = heads(hidden, logits[:, :1])
    assert one.top_p.isfinite().all()
    wide = torch.full((8, 300), torch.nan, device=device)
    wide[::2, :101] = logits
    got = heads(hidden, wide[::2, :101])
    assert torch.equal(got.top_p, heads(hidden, logits).top_p)


def test_autocast_does_not_lower_the_precision(device) -> None:
    heads = make_heads(device=device)
    hidden, logits = make_input(6, device=device)
    expected = heads(hidden, logits)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert torch.nn.functional.linear(hidden, hidden).dtype == torch.bfloat16
        got = heads(hidden, logits)
    assert torch.equal(got.temperature, expected.temperature)
    assert torch.equal(got.top_p, expected.top_p)


def test_reduced_float32_precision_is_not_used_and_is_put_back() -> None:
    heads = make_heads(hidden_size=512)
    hidden, logits = make_input(64, hidden_size=512)
    expected = heads(hidden, logits)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        got = heads(hidden, logits)
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
        with pytest.raises(ValueError):
            heads(hidden, logits.fill_(torch.nan))
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(got.temperature, expected.temperature)
    assert torch.equal(got.top_p, expected.top_p)


@pytest.mark.parametrize(
    "convert",
    [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.double()],
    ids=["to_bfloat16", "half", "double"],
)
def test_parameters_stay_float32_and_unrounded(convert) -> None:
    model = torch.nn.ModuleDict({"heads": make_heads(), "base": torch.nn.Linear(2, 2)})
    before = copy.deepcopy(model["heads"].state_dict())
    convert(model)
    assert model["base"].weight.dtype != torch.float32
    after = model["heads"].state_dict()
    assert all(torch.equal(after[name], before[name]) for name in NAMES)
    assert all(value.dtype == torch.float32 for value in after.values())


def test_a_bfloat16_state_dict_loads_into_float32_parameters() -> None:
    heads = make_heads()
    state = {name: value.bfloat16() for name, value in make_heads(seed=1).state_dict().items()}
    heads.load_state_dict(state)
    for name, value in heads.state_dict().items():
        assert torch.equal(value, state[name].float())


def test_gradients_reach_hidden_states_and_weights_and_stop_at_the_temperature(device) -> None:
    heads = make_heads(device=device)
    hidden, logits = make_input(5, device=device)
    hidden.requires_grad_()
    logits.requires_grad_()
    got = heads(hidden, logits)
    top_p_weights = list(heads.top_p_head.parameters())
    gradients = torch.autograd.grad(got.top_p.sum(), [hidden, *top_p_weights], retain_graph=True)
    assert all((gradient != 0).any() for gradient in gradients)
    unused = torch.autograd.grad(
        got.top_p.sum(),
        [logits, *heads.temp_head.parameters()],
        retain_graph=True,
        allow_unused=True,
    )
    assert unused == (None,) * 5
    gradients = torch.autograd.grad(got.temperature.sum(), [hidden, *heads.temp_head.parameters()])
    assert all((gradient != 0).any() for gradient in gradients)


def test_a_head_that_is_off_predicts_one_and_has_no_weights() -> None:
    hidden, logits = make_input(4)
    only_p = make_heads(enable_temperature_head=False)
    only_t = make_heads(enable_top_p_head=False)
    neither = make_heads(enable_temperature_head=False, enable_top_p_head=False)
    assert sorted(only_p.state_dict()) == sorted(NAMES[4:])
    assert sorted(only_t.state_dict()) == sorted(NAMES[:4])
    assert not neither.state_dict()
    assert torch.equal(only_p(hidden, logits).temperature, torch.ones(4))
    assert (only_p(hidden, logits).top_p != 1).all()
    assert torch.equal(only_t(hidden, logits).top_p, torch.ones(4))
    assert (only_t(hidden, logits).temperature != 1).all()
    assert [value.tolist() for value in neither(hidden, logits)] == [[1.0] * 4] * 2


@pytest.mark.slow
def test_modules_can_be_copied_and_compiled(device) -> None:
    heads = make_heads(device=device)
    hidden, logits = make_input(3, device=device)
    expected = heads(hidden, logits)
    copied = copy.deepcopy(heads)(hidden, logits)
    assert torch.equal(copied.top_p, expected.top_p)
    compiled = torch.compile(heads, fullgraph=True, backend="aot_eager")(hidden, logits)
    torch.testing.assert_close(compiled.top_p, expected.top_p, rtol=0, atol=1e-6)
    torch.testing.assert_close(compiled.temperature, expected.temperature, rtol=0, atol=1e-6)


def test_shapes_can_be_inferred_without_data() -> None:
    hidden, logits = make_input(2, 3)
    got = make_heads().to("meta")(hidden.to("meta"), logits.to("meta"))
    assert got.temperature.shape == got.top_p.shape == (2, 3)


@pytest.mark.parametrize(
    ("hidden", "logits", "error", "text"),
    [
        (
            torch.zeros(2, 32),
            torch.zeros(2, 9),
            ValueError,
            r"hidden_states must have shape \[..., 64\] \(the heads' hidden_size\), got \[2, 32\]",
        ),
        (torch.zeros(()), torch.zeros(9), ValueError, r"hidden_states must have .*, got \[\]"),
        (
            torch.zeros(2, 3, 64),
            torch.zeros(2, 4, 9),
            ValueError,
            r"logits must have shape \[2, 3, vocab\] to go with hidden_states, got \[2, 4, 9\]",
        ),
        (torch.zeros(2, 64), torch.zeros(9), ValueError, r"logits must have shape \[2, vocab\]"),
        (
            torch.zeros(2, 64).long(),
            torch.zeros(2, 9),
            TypeError,
            "hidden_states must be a floating point tensor, got torch.int64",
        ),
        (
            torch.zeros(2, 64),
            [[0.0]],
            TypeError,
            "logits must be a floating point tensor, got list",
        ),
        (
            torch.zeros(2, 64, device="meta"),
            torch.zeros(2, 9),
            ValueError,
            "hidden_states must be on cpu like the heads, got meta",
        ),
        (
            torch.zeros(2, 64),
            torch.zeros(2, 9, device="meta"),
            ValueError,
            "logits must be on cpu like the heads, got meta",
        ),
    ],
)
def test_bad_input_is_explained(hidden, logits, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match="^autodeco_ext.AutoDecoHeads: " + text):
        make_heads()(hidden, logits)


def test_a_row_without_a_distribution_is_named() -> None:
    hidden, logits = make_input(3)
    logits[1] = -torch.inf
    with pytest.raises(ValueError, match=r"autodeco_ext.AutoDecoHeads: logits .* row 1"):
        make_heads()(hidden, logits)


def test_heads_want_an_autodeco_configuration() -> None:
    with pytest.raises(TypeError, match="config must be an AutoDecoConfig, got dict"):
        AutoDecoHeads({"hidden_size": 64})
