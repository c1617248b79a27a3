"""forward with labels while the heads train: the same loss, and nothing the size of all logits."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from tiny_models import ARCHITECTURES, HIDDEN, IDS, VOCAB, spread_heads, tiny_autodeco
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    HyperCLOVAXConfig,
    PreTrainedModel,
)

from autodeco_ext import AutoDecoModelForCausalLM
from autodeco_ext.models import logits_transform


def training_loss(model, labels=IDS, **kwargs):
    model.heads.train()
    torch.manual_seed(11)  # easy-token drop
    return model(IDS, labels=labels, **kwargs).loss


def head_gradients(model, loss):
    return torch.autograd.grad(loss, list(model.heads.parameters()))


def assert_both_ways_agree(model, labels=IDS, **kwargs):
    skipped, full = (
        training_loss(model, labels, skip_logits=skip, **kwargs) for skip in (True, False)
    )
    torch.testing.assert_close(skipped, full, rtol=1e-4, atol=1e-6)
    pairs = zip(head_gradients(model, skipped), head_gradients(model, full), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("name", "tied"), ARCHITECTURES)
def test_the_loss_without_logits_is_the_loss_of_the_logits(name, tied):
    model = tiny_autodeco(name, tied=tied)
    labels = IDS.clone()
    labels[1, 2:] = -100
    assert_both_ways_agree(model, labels)
    assert_both_ways_agree(model, labels, num_items_in_batch=3)
    assert_both_ways_agree(model, labels, logits_to_keep=torch.tensor([1, 3, 4]))


def test_logits_and_predictions_are_left_out_in_training_only():
    model = tiny_autodeco()
    model.heads.train()
    output = model(IDS, labels=IDS)
    assert output.logits is None and output.temperature is None and output.top_p is None
    assert output.past_key_values is not None and output[0] is output.loss
    assert model(IDS, labels=IDS, skip_logits=False).logits.shape == (2, 5, VOCAB)
    assert model(IDS).temperature.shape == IDS.shape  # nothing is left out without labels
    model.train()
    assert model(IDS, labels=IDS).logits is None
    model.eval()
    assert model(IDS, labels=IDS).logits.shape == (2, 5, VOCAB)
    with pytest.raises(ValueError, match="skip_logits must be False without labels, got True"):
        model(IDS, skip_logits=True)


class CountingHead(nn.Linear):
    rows = 0

    def forward(self, hidden):
        self.rows += hidden.shape[:-1].numel()
        return super().forward(hidden)


def test_the_lm_head_multiplies_the_scored_positions_once():
    model = tiny_autodeco()
    counting = CountingHead(HIDDEN, VOCAB, bias=False)
    counting.weight = model.lm_head.weight
    model.lm_head = counting
    labels = torch.full_like(IDS, -100)
    labels[0, 2:] = 7
    training_loss(model, labels).backward()
    assert counting.rows == 3 + 2  # and the row that is compared with the base's own, twice
    training_loss(model, labels).backward()
    assert counting.rows == 5 + 3 + 1  # the base still makes that row, nothing compares it


SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
CHANGED_LOGITS = {
    "soft cap": lambda: Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=0.5),
    "scale": lambda: CohereConfig(**SIZES, logit_scale=0.125),
    "divisor": lambda: GraniteConfig(**SIZES, logits_scaling=6.0),
}


def base_of(config) -> PreTrainedModel:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        base.get_input_embeddings().weight.mul_(20)
        if base.get_output_embeddings().weight is not base.get_input_embeddings().weight:
            base.get_output_embeddings().weight.mul_(20)
    return base


@pytest.mark.parametrize("name", CHANGED_LOGITS)
def test_what_the_base_does_after_its_lm_head_is_done_to_every_chunk(name):
    model = AutoDecoModelForCausalLM.from_base(base_of(CHANGED_LOGITS[name]()))
    spread_heads(model.heads)
    output = model(IDS)
    plain = model.lm_head(model(IDS, output_hidden_states=True).hidden_states[-1])
    assert (output.logits - plain).abs().max() > 0.1
    assert_both_ways_agree(model)


def test_a_base_that_changes_its_logits_in_an_unknown_way_is_refused_by_name():
    model = AutoDecoModelForCausalLM.from_base(
        base_of(HyperCLOVAXConfig(**SIZES, logits_scaling=3.0))
    )
    with pytest.raises(ValueError, match="skip_logits must be False for HyperCLOVAXForCausalLM"):
        training_loss(model)
    assert training_loss(model, skip_logits=False) > 0


def hyperclovax(scale: float):
    """A base with a scale that is not known here, the same base for every scale."""
    model = AutoDecoModelForCausalLM.from_base(
        base_of(HyperCLOVAXConfig(**SIZES, logits_scaling=scale))
    )
    return model.train()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_small_unknown_change_of_the_logits_is_seen_as_far_as_the_dtype_shows_it(dtype):
    change = {torch.float32: 1.001, torch.bfloat16: 1.03, torch.float16: 1.01}[dtype]
    assert training_loss(hyperclovax(1.0).to(dtype)) >= 0
    with pytest.raises(ValueError, match="skip_logits must be False for HyperCLOVAXForCausalLM"):
        training_loss(hyperclovax(change).to(dtype))


def test_an_unknown_soft_cap_is_seen_where_logits_are_small(monkeypatch):
    model = AutoDecoModelForCausalLM.from_base(base_of(CHANGED_LOGITS["soft cap"]()))
    model.config.final_logit_softcapping = 3 * model(IDS).logits.abs().max().item()
    monkeypatch.setattr(logits_transform, "_constants", lambda model: (None, None, None))
    with pytest.raises(ValueError, match="skip_logits must be False for Gemma2ForCausalLM"):
        training_loss(model)


def test_the_logits_are_compared_once_per_model_and_transform(monkeypatch):
    looks = []
    are_close = logits_transform._are_close
    monkeypatch.setattr(
        logits_transform, "_are_close", lambda *pair: looks.append(0) or are_close(*pair)
    )
    model = AutoDecoModelForCausalLM.from_base(base_of(CHANGED_LOGITS["soft cap"]()))
    state = set(vars(model))
    for _ in range(3):
        training_loss(model)
    assert len(looks) == 1 and set(vars(model)) == state
    training_loss(pickle.loads(pickle.dumps(model)))
    training_loss(copy.deepcopy(model))
    assert len(looks) == 3
    model.config.final_logit_softcapping = 0.25
    training_loss(model)
    assert len(looks) == 4
    refused = hyperclovax(3.0)
    for _ in range(2):
        with pytest.raises(ValueError, match="skip_logits must be False"):
            training_loss(refused)


def test_nothing_to_score_in_training_is_a_differentiable_zero():
    model = tiny_autodeco()
    loss = training_loss(model, torch.full_like(IDS, -100), num_items_in_batch=torch.tensor(0))
    assert loss == 0 and all((one == 0).all() for one in head_gradients(model, loss))


def test_no_positions_are_a_differentiable_zero_and_show_nothing_of_the_base():
    model, none = tiny_autodeco(), torch.tensor([], dtype=torch.int64)
    loss = training_loss(model, logits_to_keep=none)
    assert loss == 0 and all((one == 0).all() for one in head_gradients(model, loss))
    refused = hyperclovax(3.0)
    assert training_loss(refused, logits_to_keep=none) == 0
    with pytest.raises(ValueError, match="skip_logits must be False for HyperCLOVAXForCausalLM"):
        training_loss(refused)


def test_micro_batches_add_up():
    model = tiny_autodeco()
    torch.manual_seed(2)
    ids = torch.randint(1, VOCAB, (8, 6))
    labels = torch.where(torch.rand(8, 6) < 0.3, -100, ids)
    items = (labels[:, 1:] != -100).sum()
    model.heads.train()
    sums = []
    for size in (8, 4, 2):
        torch.manual_seed(5)
        model.zero_grad()
        for part in torch.arange(8).split(size):
            model(ids[part], labels=labels[part], num_items_in_batch=items).loss.backward()
        sums.append([one.grad.clone() for one in model.heads.parameters()])
    for other in sums[1:]:
        for got, expected in zip(other, sums[0], strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_compiled_model_trains_with_the_same_loss():
    model = tiny_autodeco()
    expected = training_loss(model)
    compiled = torch.compile(model, backend="eager")
    torch.manual_seed(11)
    got = compiled(IDS, labels=IDS)
    torch.testing.assert_close(got.loss, expected)
    assert got.logits is None
    index = torch.tensor([1, 3])
    torch.manual_seed(11)
    got = compiled(IDS, labels=IDS, logits_to_keep=index)
    torch.testing.assert_close(got.loss, training_loss(model, logits_to_keep=index))


def test_the_chunk_budget_of_a_model_is_set_on_it():
    model, rows = tiny_autodeco(), []
    model.lm_head.register_forward_hook(lambda _, inputs, output: rows.append(len(output)))
    training_loss(model)
    assert rows[-1] == 8  # after the one of the base and those that are compared with it
    model.max_chunk_bytes = 1  # a chunk has one row at least
    training_loss(model)
    assert rows[-8:] == [1] * 8
    model.max_chunk_bytes = 0
    with pytest.raises(ValueError, match="max_chunk_bytes must be >= 1, got 0"):
        training_loss(model)


@pytest.mark.slow
def test_trainer_trains_the_heads_and_evaluates_with_logits(tmp_path):
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    model = tiny_autodeco()
    torch.manual_seed(2)
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(1, VOCAB, (16, 6))]
    before = [one.detach().clone() for one in model.heads.parameters()]
    base = model.lm_head.weight.detach().clone()
    shapes = []
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=4,
            learning_rate=1e-2,
            num_train_epochs=2,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
        ),
        train_dataset=rows,
        eval_dataset=rows[:4],
        compute_metrics=lambda seen: shapes.append([one.shape for one in seen.predictions]) or {},
    )
    trainer.train()
    assert all(
        not torch.equal(one, old) for one, old in zip(model.heads.parameters(), before, strict=True)
    )
    assert torch.equal(model.lm_head.weight, base)
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] > 0 and shapes == [[(4, 6, VOCAB), (4, 6), (4, 6)]]
