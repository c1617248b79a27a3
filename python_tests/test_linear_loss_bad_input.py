"""linear_autodeco_loss refuses with a sentence what does not fit, and names invalid rows."""

from __future__ import annotations

import pytest
import torch
from linear_loss_case import VOCAB, Case, module_of
from torch import Tensor, nn

from autodeco_ext import linear_autodeco_loss

BAD = {
    "labels must have shape [2, 7], got [7]": {"labels": torch.zeros(7, dtype=torch.int64)},
    "labels must be integers, got torch.float32": {"labels": torch.zeros(2, 7)},
    "labels must be integers, got torch.bool": {"labels": torch.zeros(2, 7).bool()},
    "train_base must be a bool, got 'no'": {"train_base": "no"},
    "train_base must be a bool, got tensor([ True, False])": {
        "train_base": torch.tensor([True, False])
    },
    "bias must be on cpu like the hidden states, got meta": {
        "bias": torch.zeros(40, device="meta")
    },
    "drop_uniform must be on cpu, got meta": {"drop_uniform": torch.zeros(2, 7, device="meta")},
    "temperature_clamp must be in the range of float32, got 1e+39": {"temperature_clamp": 1e39},
    "lm_head must be a weight or a module that takes hidden states, got Embedding (give its"
    " weight)": {"lm_head": nn.Embedding(40, 12)},
    "labels must be on cpu, got meta": {"labels": torch.zeros(2, 7, device="meta").long()},
    "hidden_states must have shape [..., 12] (the heads' hidden_size), got [2, 7, 11]": {
        "hidden_states": torch.zeros(2, 7, 11)
    },
    "hidden_states must be floating point, got torch.int64": {
        "hidden_states": torch.zeros(2, 7, 12).long()
    },
    "heads must be on meta like the hidden states, got cpu": {
        "hidden_states": torch.zeros(2, 7, 12, device="meta")
    },
    "heads must be an AutoDecoHeads, got Linear": {"heads": nn.Linear(12, 1)},
    "lm_head must have shape [vocab, 12] to go with hidden_states, got [12, 40]": {
        "lm_head": torch.zeros(12, 40)
    },
    "lm_head must be a weight or a module, got list": {"lm_head": []},
    "lm_head must be on cpu like the hidden states, got meta": {
        "lm_head": torch.zeros(40, 12, device="meta")
    },
    "lm_head must be torch.float32 like the hidden states, got torch.float64": {
        "lm_head": torch.zeros(40, 12, dtype=torch.float64)
    },
    "bias must be torch.float32 like the hidden states, got torch.bfloat16": {
        "bias": torch.zeros(40, dtype=torch.bfloat16)
    },
    "bias must have shape [40], got [41]": {"bias": torch.zeros(41)},
    "bias must be None with a module, which has its own, got both": {
        "lm_head": nn.Linear(12, 40),
        "bias": torch.zeros(40),
    },
    "lm_head must return a tensor [9, vocab] for as many rows, got [9, 40, 1]": {
        "lm_head": nn.Sequential(nn.Linear(12, 40), nn.Unflatten(1, (40, 1))),
        "chunk_size": 100,
    },
    "chunk_size must be an integer for an lm_head module without out_features, got 'auto'": {
        "lm_head": nn.Sequential(nn.Linear(12, 40))
    },
    "logits_transform must be callable or None, got float": {"logits_transform": 2.0},
    "logits_transform must return a tensor [9, vocab] for as many rows, got NoneType": {
        "logits_transform": lambda logits: None
    },
    "chunk_size must be >= 1, got 0": {"chunk_size": 0},
    "chunk_size must be an integer or 'auto', got str": {"chunk_size": "all"},
    "max_chunk_bytes must be >= 1, got 0": {"max_chunk_bytes": 0},
    "reduction must be 'mean' with num_items_in_batch, got 'sum'": {
        "reduction": "sum",
        "num_items_in_batch": 4,
    },
    "num_items_in_batch must be finite and >= 0, got -1": {"num_items_in_batch": -1},
    "num_items_in_batch must have one element, got 0": {"num_items_in_batch": torch.zeros(0)},
    "variant must be 'released' or 'megatron', got 'fast'": {"variant": "fast"},
    "check must be a bool or None, got 1": {"check": 1},
}


@pytest.mark.parametrize("text", BAD)
def test_bad_arguments_are_explained(text: str) -> None:
    case = Case()
    arguments = {
        "hidden_states": case.hidden,
        "lm_head": case.weight,
        "heads": case.heads,
        "labels": case.labels,
    }
    with pytest.raises((ValueError, TypeError)) as error:
        linear_autodeco_loss(**arguments | BAD[text])
    assert str(error.value) == f"autodeco_ext.linear_autodeco_loss: {text}"


def with_bias(bias: Tensor) -> nn.Linear:
    lm_head = nn.Linear(12, VOCAB)
    lm_head.bias = nn.Parameter(bias)
    return lm_head


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize(
    ("lm_head", "text"),
    [
        (
            with_bias(torch.zeros(VOCAB).half()),
            "lm_head.bias must be torch.float32 like the hidden states, got torch.float16",
        ),
        (
            with_bias(torch.zeros(VOCAB, device="meta")),
            "lm_head.bias must be on cpu like the hidden states, got meta",
        ),
        (nn.Linear(11, 40), "lm_head must have in_features 12 like the hidden states, got 11"),
        (nn.Linear(12, 40).bfloat16(), "lm_head must be torch.float32 like the hidden states, got"),
        (nn.Linear(12, 40).to("meta"), "lm_head must be on cpu like the hidden states, got meta"),
    ],
)
def test_a_module_that_does_not_fit_is_explained_also_without_labels(
    lm_head: nn.Module, text: str, labelled: bool
) -> None:
    case = Case()
    if not labelled:
        case.labels.fill_(-100)
    with pytest.raises(ValueError, match=f"^autodeco_ext.linear_autodeco_loss: {text}"):
        case.loss(lm_head)


def test_a_module_that_casts_or_loads_its_weight_itself_is_let_be() -> None:
    case = Case()
    expected = case.loss().loss

    class Casts(nn.Linear):
        def forward(self, hidden: Tensor) -> Tensor:
            return nn.functional.linear(hidden, self.weight.float())

    casts = Casts(12, VOCAB, bias=False, dtype=torch.float64)
    casts.weight = nn.Parameter(case.weight.double())
    loads, weight = nn.Linear(12, VOCAB, bias=False, device="meta"), case.weight
    loads.forward = lambda hidden: nn.functional.linear(hidden, weight)
    for lm_head in (casts, loads):
        assert torch.equal(case.loss(lm_head).loss, expected)


def test_a_transform_without_a_gradient_is_explained() -> None:
    case = Case()
    case.hidden.requires_grad_()
    loss = case.loss(train_base=True, logits_transform=lambda logits: logits.detach().tanh()).loss
    text = "linear_autodeco_loss: logits_transform must be differentiable with train_base=True"
    with pytest.raises(ValueError, match=text):
        loss.backward()


@pytest.mark.parametrize("chunk_size", [1, 4, 100])
def test_an_invalid_row_is_named_by_its_place_in_the_labels(chunk_size: int) -> None:
    case = Case()
    case.labels[1, 2] = VOCAB
    with pytest.raises(ValueError, match=rf"linear_autodeco_loss: labels .* got {VOCAB} in row 9$"):
        case.loss(chunk_size=chunk_size)
    case = Case()
    case.hidden[1, 1] = torch.nan
    with pytest.raises(ValueError, match=r"linear_autodeco_loss: logits .* in row 8$"):
        case.loss(chunk_size=chunk_size)
    case.labels[1, 1] = -100  # then nothing of it is read
    case.loss(chunk_size=chunk_size).loss.backward()
    assert all(one.grad.isfinite().all() for one in case.heads.parameters())


@pytest.mark.parametrize(("chunk_size", "named"), [(1, "labels"), (100, "logits")])
def test_features_read_the_logits_of_a_chunk_before_its_labels_are_looked_at(
    chunk_size: int, named: str
) -> None:
    case, without_features = Case(), Case(use_enhanced_features=False)
    for one in (case, without_features):
        one.labels[0, 3] = VOCAB
        one.hidden[1, 1] = torch.nan
    rows = {"labels": 3, "logits": 8}
    with pytest.raises(ValueError, match=f"linear_autodeco_loss: {named} .* in row {rows[named]}$"):
        case.loss(chunk_size=chunk_size)
    with pytest.raises(ValueError, match=r"linear_autodeco_loss: labels .* in row 3$"):
        without_features.loss(chunk_size=chunk_size)


@pytest.mark.parametrize("missing", ["use_enhanced_features", "enable_top_p_head"])
def test_without_check_what_no_head_reads_is_nan(missing: str) -> None:
    case = Case(**{missing: False})
    case.labels[0, 3] = VOCAB
    case.hidden[1, 1] = torch.nan
    loss = case.loss(check=False, reduction="none").temperature_loss
    expected = torch.zeros(2, 7, dtype=torch.bool)
    expected[0, 3] = expected[1, 1] = True
    assert torch.equal(loss.isnan(), expected)


def test_without_check_what_a_head_reads_is_an_error_and_a_label_is_nan() -> None:
    case = Case()
    case.labels[0, 3] = VOCAB
    loss = case.loss(check=False, reduction="none").loss
    assert loss.isnan().nonzero().tolist() == [[0, 3]]
    case.hidden[1, 1] = torch.nan
    with pytest.raises(ValueError, match=r"linear_autodeco_loss: logits .* in row 8$"):
        case.loss(check=False)


def test_an_invalid_prediction_is_told_from_an_argument() -> None:
    case = Case()
    last = case.heads.temp_head.mlp[2]
    named = r"^autodeco_ext.linear_autodeco_loss: hidden_states must give a temperature that is "
    with torch.no_grad():
        last.bias.fill_(-200)  # T is 0, which only a clamp makes a temperature
    case.loss()
    with pytest.raises(ValueError, match=named + r"> 0 where its clamp is 0, got 0 in row 3$"):
        case.loss(variant="megatron")
    with torch.no_grad():
        last.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match=named + r"finite and >= 0, got nan in row 3$"):
        case.loss()


@pytest.mark.parametrize("text", ["my own trouble in row 1", "autodeco_ext.sample: mine in row 1"])
@pytest.mark.parametrize("place", ["lm_head", "logits_transform"])
def test_an_error_of_the_callers_own_code_arrives_as_it_is(place: str, text: str) -> None:
    def fails(_: Tensor) -> Tensor:
        raise error

    class Head(nn.Linear):
        forward = staticmethod(fails)

    error, case = ValueError(text), Case()
    options = {"logits_transform": fails} if place == "logits_transform" else {}
    with pytest.raises(ValueError) as caught:
        case.loss(Head(12, VOCAB) if place == "lm_head" else module_of(case), **options)
    assert caught.value is error
    assert [entry.name for entry in caught.traceback][-1] == "fails"
