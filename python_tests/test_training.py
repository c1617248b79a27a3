"""Training the heads on cached hidden states."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import GraniteConfig, GraniteForCausalLM
from word_problems import SIZES, WORDS, made_up_problems, word_model, word_tokenizer

from autodeco_ext import AutoDecoModelForCausalLM
from autodeco_ext.evaluation.answering import Answer, Answerer
from autodeco_ext.evaluation.problems import FewShotPrompt
from autodeco_ext.evaluation.strategies import Strategy
from autodeco_ext.training.fit import CachedPositions, FitSettings, cache_positions, fit_heads

STATIC = Strategy("T = 1", 1.0, 1.0)


def answered(rows: int = 64) -> tuple[Answerer, list[Answer]]:
    torch.manual_seed(0)
    model = AutoDecoModelForCausalLM.from_base(word_model()).eval()
    answerer = Answerer(model, word_tokenizer(), FewShotPrompt(), max_new_tokens=8, rows=rows)
    return answerer, list(
        answerer.answer(made_up_problems(10), [STATIC], samples=2, seed=0)["T = 1"]
    )


@pytest.mark.parametrize("rows", [3, 64])
def test_cached_hidden_states_are_those_of_each_answer_alone(rows: int) -> None:
    answerer, answers = answered(rows)
    cached = cache_positions(answerer, answers)
    base, tokenizer, prompt = word_model(), word_tokenizer(), answerer.prompt
    start = 0
    for answer in answers:
        prompt_ids = tokenizer(prompt.prefix + prompt.question(answer.problem.question))[
            "input_ids"
        ]
        ids = torch.tensor([prompt_ids + answer.token_ids])
        with torch.no_grad():
            states = base(ids, output_hidden_states=True).hidden_states[-1][0]
        count = len(answer.token_ids)
        expected = states[len(prompt_ids) - 1 : -1]
        torch.testing.assert_close(
            cached.hidden_states[start : start + count], expected, rtol=1e-4, atol=1e-4
        )
        assert cached.labels[start : start + count].tolist() == answer.token_ids
        start += count
    assert start == len(cached)


def test_training_lowers_both_losses_and_leaves_the_base_alone() -> None:
    answerer, answers = answered()
    model = answerer.model
    base = {
        name: value.clone() for name, value in model.state_dict().items() if "heads." not in name
    }
    heads = {name: value.clone() for name, value in model.heads.state_dict().items()}
    cached = cache_positions(answerer, answers)
    steps: list[float] = []
    settings = FitSettings(epochs=15, learning_rate=3e-3, positions_per_step=32)
    losses = fit_heads(
        model.heads,
        model.get_output_embeddings(),
        cached,
        settings,
        vocab=answerer.vocab,
        progress=steps.append,
    )
    assert len(losses) == 15 and len(steps) == settings.steps(len(cached))
    # One step's easy-token drop makes the temperature loss jump; thirds of the run do not.
    assert sum(one.loss for one in losses[-5:]) < sum(one.loss for one in losses[:5])
    assert sum(one.top_p_loss for one in losses[-5:]) < sum(one.top_p_loss for one in losses[:5])
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in base.items())
    assert all(not torch.equal(model.heads.state_dict()[name], heads[name]) for name in heads)


def test_training_teaches_where_to_be_sure() -> None:
    """Half of the labels are the argmax, half are random: T must learn to tell them apart."""
    torch.manual_seed(0)
    hidden, vocab = 8, 20
    from autodeco_ext import AutoDecoConfig, AutoDecoHeads

    lm_head = torch.nn.Linear(hidden, vocab, bias=False)
    lm_head.weight.data.normal_(0, 1)
    states = torch.randn(600, hidden)
    sure = states[:, 0] > 0
    logits = lm_head(states).detach()
    guesses = torch.distributions.Categorical(logits=logits / 2).sample()
    labels = torch.where(sure, logits.argmax(-1), guesses)
    heads = AutoDecoHeads(AutoDecoConfig(hidden_size=hidden))
    settings = FitSettings(epochs=12, learning_rate=3e-3)
    fit_heads(heads, lm_head, CachedPositions(states, labels, 600), settings, vocab=vocab)
    with torch.no_grad():
        temperature = heads(states, logits).temperature
    assert temperature[sure].mean() + 0.2 < temperature[~sure].mean()


def test_the_same_settings_train_the_same_heads() -> None:
    answerer, answers = answered()
    cached = cache_positions(answerer, answers)
    lm_head = answerer.model.get_output_embeddings()
    trained = []
    for seed in (4, 4, 5):
        heads = copy.deepcopy(answerer.model.heads)
        fit_heads(heads, lm_head, cached, FitSettings(epochs=2, seed=seed), vocab=11)
        trained.append(torch.cat([one.flatten() for one in heads.parameters()]))
    assert torch.equal(trained[0], trained[1])
    assert not torch.equal(trained[0], trained[2])


def test_no_answers_are_refused() -> None:
    answerer, _ = answered()
    with pytest.raises(ValueError, match="answers must not be empty"):
        cache_positions(answerer, [])


def test_a_base_that_changes_logits_after_its_lm_head_is_refused() -> None:
    answerer, answers = answered()
    base_forward = answerer.model.forward

    def capped(*args, **kwargs):
        outputs = base_forward(*args, **kwargs)
        outputs.logits = 5 * torch.tanh(outputs.logits / 5)
        return outputs

    answerer.model.forward = capped
    with pytest.raises(ValueError, match="got logits that are changed after it"):
        cache_positions(answerer, answers)


def test_a_scale_of_the_base_that_is_known_is_trained_with() -> None:
    divisor = 4.0  # a power of two, which rounds nothing
    torch.manual_seed(0)
    model = AutoDecoModelForCausalLM.from_base(granite(divisor)).eval()
    answerer = Answerer(model, word_tokenizer(), FewShotPrompt(), max_new_tokens=8)
    problems = made_up_problems(4)
    answers = list(answerer.answer(problems, [STATIC], samples=2, seed=0)["T = 1"])
    cached = cache_positions(answerer, answers)
    plain = CachedPositions(cached.hidden_states, cached.labels, cached.answers)
    scaled = copy.deepcopy(model.get_output_embeddings())
    with torch.no_grad():
        scaled.weight /= divisor
    trained = []
    for lm_head, positions in ((model.get_output_embeddings(), cached), (scaled, plain)):
        heads = copy.deepcopy(model.heads)
        fit_heads(heads, lm_head, positions, FitSettings(epochs=2), vocab=answerer.vocab)
        trained.append(torch.cat([one.flatten() for one in heads.parameters()]))
    assert torch.equal(*trained)


def granite(divisor: float) -> GraniteForCausalLM:
    """A random base that divides its LM head's output."""
    config = GraniteConfig(
        vocab_size=len(WORDS), num_hidden_layers=1, logits_scaling=divisor, **SIZES
    )
    base = GraniteForCausalLM(config).eval()
    with torch.no_grad():
        base.lm_head.weight.normal_(0, 1)
    return base
