"""forward with labels: the AutoDeco loss, in evaluation and in training."""

from __future__ import annotations

import re

import pytest
import torch
from tiny_models import IDS, tiny_autodeco, tiny_base

from autodeco_ext import AutoDecoModelForCausalLM, reference


@pytest.fixture(scope="module", params=["evaluation", "training"])
def model(request):
    """With trained heads in either mode: it decides how the loss is computed, not what it is."""
    model = tiny_autodeco()
    model.heads.train(request.param == "training")
    return model


def loss_of(model, ids, labels, **kwargs):
    torch.manual_seed(11)  # easy-token drop
    return model(ids, labels=labels, **kwargs).loss


def expected_loss(model, labels, reduction):
    """The released loss, by the reference, from shifted labels."""
    output = model(IDS)
    shifted = torch.cat([labels[:, 1:], torch.full((2, 1), -100)], dim=1)
    torch.manual_seed(11)
    return reference.autodeco_loss(
        output.logits.detach(),
        output.temperature,
        output.top_p,
        shifted,
        drop_uniform=torch.rand(2, 5),
        reduction=reduction,
    ).loss


def test_labels_give_the_released_loss_of_shifted_labels(model):
    labels = IDS.clone()
    labels[0, :3] = -100
    torch.testing.assert_close(loss_of(model, IDS, labels), expected_loss(model, labels, "mean"))


def test_without_a_top_p_head_the_temperature_loss_is_all(model):
    only_temperature = AutoDecoModelForCausalLM.from_base(tiny_base(), enable_top_p_head=False)
    only_temperature.heads.train(model.heads.training)
    output = only_temperature(IDS)
    predicted = output.logits.detach(), output.temperature, output.top_p
    shifted = torch.cat([IDS[:, 1:], torch.full((2, 1), -100)], dim=1)
    torch.manual_seed(11)
    parts = reference.autodeco_loss(*predicted, shifted, drop_uniform=torch.rand(2, 5))
    torch.testing.assert_close(loss_of(only_temperature, IDS, IDS), parts.temperature_loss)


def test_num_items_in_batch_is_the_denominator_so_accumulation_adds_up(model):
    total = expected_loss(model, IDS, "sum")
    for items in (7, torch.tensor(7), torch.tensor([7.0], dtype=torch.float64)):
        torch.testing.assert_close(loss_of(model, IDS, IDS, num_items_in_batch=items), total / 7)


@pytest.mark.parametrize("items", [0, torch.tensor(0), torch.tensor([0.0])])
def test_no_items_at_all_are_a_zero_not_nan(model, items):
    loss = loss_of(model, IDS, torch.full_like(IDS, -100), num_items_in_batch=items)
    assert loss.shape == () and loss == 0


@pytest.mark.parametrize(
    ("items", "error", "text"),
    [
        (-5, ValueError, "must be finite and >= 0, got -5"),
        (float("inf"), ValueError, "must be finite and >= 0, got inf"),
        (float("nan"), ValueError, "must be a number, got nan"),
        ("7", TypeError, "must be a number or a tensor, got str"),
        (torch.tensor([3, 4]), ValueError, "must have one element, got 2"),
        (torch.tensor(3, device="meta"), ValueError, "must hold a value, got a meta tensor"),
        (torch.tensor(True), TypeError, "must be real numbers, got torch.bool"),
    ],
)
def test_a_number_of_items_that_is_none_is_explained(model, items, error, text):
    with pytest.raises(error) as caught:
        model(IDS, labels=IDS, num_items_in_batch=items)
    op = "autodeco_ext.AutoDecoModelForCausalLM.forward"
    assert str(caught.value) == f"{op}: num_items_in_batch {text}"


def test_the_loss_comes_first_in_a_tuple(model):
    torch.manual_seed(11)
    first = model(IDS, labels=IDS, return_dict=False)[0]
    assert torch.equal(first, loss_of(model, IDS, IDS))


def test_easy_tokens_are_dropped_by_torchs_generator(model):
    logits = model(IDS).logits
    labels = torch.cat([IDS[:, :1], logits.argmax(-1)[:, :-1]], dim=1)  # every label is the argmax
    torch.manual_seed(5)
    losses = [model(IDS, labels=labels).loss for _ in range(2)]
    assert losses[0] != losses[1]
    torch.manual_seed(5)
    predicted = model(IDS)
    expected = reference.autodeco_loss(
        logits[:, :-1],
        predicted.temperature[:, :-1],
        predicted.top_p[:, :-1],
        labels[:, 1:],
        drop_uniform=torch.rand(2, 5)[:, :-1],  # one for every position, scored or not
    )
    torch.testing.assert_close(losses[0], expected.loss)


def test_labels_go_with_logits_to_keep(model):
    labels = IDS.clone()
    labels[:, :3] = -100  # the outputs at the last three positions are scored
    whole = loss_of(model, IDS, labels)
    torch.testing.assert_close(loss_of(model, IDS, labels, logits_to_keep=3), whole)
    index = torch.tensor([2, 3, 4])
    torch.testing.assert_close(loss_of(model, IDS, labels, logits_to_keep=index), whole)


def test_the_loss_reaches_the_heads_and_nothing_else():
    model = tiny_autodeco()
    torch.manual_seed(0)
    model(IDS, labels=IDS).loss.backward()
    for name, parameter in model.named_parameters():
        if name.startswith("heads."):
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name


def test_a_batch_without_labels_gives_a_differentiable_zero(model):
    loss = model(IDS, labels=torch.full_like(IDS, -100)).loss
    loss.backward()
    assert loss.item() == 0


def test_labels_that_are_already_shifted_are_refused(model):
    text = r"shift_labels must be None \(forward shifts labels itself\), got a Tensor"
    with pytest.raises(ValueError, match=text):
        model(IDS, labels=IDS, shift_labels=IDS)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"labels": IDS.float()}, TypeError, "labels must be integers, got torch.float32"),
        ({"labels": IDS > 3}, TypeError, "labels must be integers, got torch.bool"),
        ({"labels": IDS.tolist()}, TypeError, "labels must be a torch.Tensor, got list"),
        ({"labels": IDS.to("meta")}, ValueError, "labels must be on cpu, got meta"),
        ({"labels": IDS, "skip_logits": "no"}, TypeError, "skip_logits must be a bool or None"),
        ({"skip_logits": "no"}, TypeError, "skip_logits must be a bool or None, got 'no'"),
    ],
)
def test_bad_arguments_are_those_of_forward_in_either_mode(model, arguments, error, text):
    named = f"^autodeco_ext.AutoDecoModelForCausalLM.forward: {re.escape(text)}"
    with pytest.raises(error, match=named):
        model(IDS, **arguments)


def test_labels_of_another_length_are_an_error(model):
    for labels in (IDS[:, :4], IDS[0], IDS[..., None], torch.tensor(1)):
        text = f"labels must have the shape of input_ids, got {list(labels.shape)} for"
        with pytest.raises(ValueError, match=re.escape(text)):
            model(IDS, labels=labels)


@pytest.mark.parametrize(("kwargs", "position"), [({}, 3), ({"logits_to_keep": 2}, 4)])
def test_a_label_that_is_no_column_is_named_by_its_place(model, kwargs, position):
    labels = IDS.clone()
    labels[1, position] = 99
    text = (
        "autodeco_ext.AutoDecoModelForCausalLM.forward: labels must be a column of logits or"
        f" ignore_index, got 99 in labels[1, {position}]"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        model(IDS, labels=labels, **kwargs)


def test_an_invalid_prediction_is_named_by_its_place():
    model = tiny_autodeco()
    with torch.no_grad():
        model.heads.temp_head.mlp[2].bias.fill_(torch.nan)
    text = (
        "autodeco_ext.AutoDecoModelForCausalLM.forward: hidden_states must give a temperature that"
        " is finite and >= 0, got nan in sequence 0, position 0"
    )
    for is_training in (True, False):
        model.heads.train(is_training)
        for labels in (IDS, None):
            with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
                model(IDS, labels=labels)


@pytest.mark.parametrize(("kwargs", "position"), [({}, 0), ({"logits_to_keep": 2}, 3)])
def test_an_invalid_row_is_named_by_its_place(model, kwargs, position):
    """In evaluation, and without labels, the heads find it; in training the loss does."""
    embeddings = model.get_input_embeddings()(IDS).detach()
    embeddings[1] = torch.nan
    text = (
        "autodeco_ext.AutoDecoModelForCausalLM.forward: logits must not contain NaN, got NaN in"
        f" sequence 1, position {position}"
    )
    for labels in (IDS, None):
        with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
            model(inputs_embeds=embeddings, labels=labels, **kwargs)
