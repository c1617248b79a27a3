"""Reading and checking word problems, pass@k, and answers drawn from shared caches."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from word_problems import made_up_problems, word_model, word_tokenizer

from autodeco_ext import AutoDecoModelForCausalLM
from autodeco_ext.evaluation.answering import Answerer, answer_seed, line_break_ids
from autodeco_ext.evaluation.comparison import Verdict, summarise, verdicts
from autodeco_ext.evaluation.pass_at_k import (
    Estimate,
    mean_difference,
    mean_estimate,
    pass_at_k,
)
from autodeco_ext.evaluation.problems import (
    FewShotPrompt,
    Problem,
    is_correct,
    read_problems,
    split_problems,
    stated_answer,
)
from autodeco_ext.evaluation.strategies import AUTODECO, COMPARED, GREEDY, Strategy

PROMPT = FewShotPrompt()
STATIC = Strategy("T = 1", 1.0, 1.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" 7 + 2 = 9 caps.", 9.0),
        ("So 3 * 4 = 12, and 12 + 1 = 13.", 13.0),
        ("1 + 1 = 3. The answer is 2.", 2.0),
        ("The answer is: $1,200.50", 1200.5),
        ("5 - 8 = -3", -3.0),
        ("I do not know\n= 4", None),
        ("", None),
    ],
)
def test_the_stated_answer_is_read_from_the_first_line(text: str, expected: float | None) -> None:
    assert stated_answer(text) == expected


def test_an_answer_is_right_only_if_its_number_is() -> None:
    assert is_correct("1.54 * 3 = 4.62 dollars", 4.62)
    assert not is_correct("1.54 * 3 = 4.63 dollars", 4.62)
    assert not is_correct("no number", 0.0)


def test_problem_files_are_read_with_numbers_and_texts_as_answers(tmp_path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text(
        '{"question": "How many ?", "answer": 3}\n\n'
        '{"question": "And now?", "answer": "so #### 1,018"}\n'
    )
    first, second = read_problems(path)
    assert (first.question, first.answer) == ("How many?", 3.0)
    assert second.answer == 1018.0


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "not JSON"),
        ("[]", "must be a JSON object, got list"),
        ('{"question": "x"}', "the field 'answer' is missing"),
        ('{"question": "x", "answer": "none"}', "'answer' must hold a number"),
        ('{"question": " ", "answer": 1}', "'question' must be a non-empty text"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line: str, complaint: str) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text('{"question": "x", "answer": 1}\n' + line + "\n")
    with pytest.raises(ValueError, match=f"set.jsonl, line 2: {complaint}"):
        read_problems(path)


def test_training_and_held_out_problems_share_no_question() -> None:
    first = made_up_problems(60)
    again = [Problem(one.question.upper() + "!", one.answer, "again") for one in first]
    training, held_out = split_problems(first, again, evaluate=20, train=100, seed=3)
    assert len(held_out) == 20
    assert len(training) == 40  # what is left of the first set; the second one repeats it
    plain = [{one.question.lower().rstrip("!?") for one in part} for part in (training, held_out)]
    assert plain[0].isdisjoint(plain[1])


def test_questions_that_differ_in_numbers_only_count_as_one() -> None:
    first = [Problem(f"Tom has {number} caps?", number, "x") for number in range(5)]
    other = [Problem("Who has 3 pens?", 3.0, "x")]
    training, held_out = split_problems(first, other, evaluate=5, train=5, seed=0)
    assert len(held_out) == 1 and training == other


def test_a_question_that_only_the_second_set_has_is_never_held_out() -> None:
    # The default prompt was chosen on such problems.
    first = made_up_problems(12)
    second = first[:4] + [Problem(f"Who has {name}?", 3.0, "y") for name in "abcdefgh"]
    own = {one.question for one in first}
    for seed in range(20):
        _, held_out = split_problems(first, second, evaluate=100, train=100, seed=seed)
        assert len(held_out) == 12 and {one.question for one in held_out} == own


def test_the_split_is_decided_by_the_seed() -> None:
    problems = made_up_problems(40)
    splits = [split_problems(problems, [], evaluate=10, train=30, seed=seed) for seed in (1, 1, 2)]
    assert splits[0] == splits[1] != splits[2]


def test_a_set_too_small_to_split_is_refused() -> None:
    with pytest.raises(ValueError, match="got 1 and 0 of 1 different problems"):
        split_problems(made_up_problems(1), [], evaluate=5, train=5, seed=0)


@pytest.mark.parametrize(("samples", "correct"), [(4, 0), (4, 1), (4, 3), (5, 5), (6, 2)])
def test_pass_at_k_is_the_share_of_draws_with_a_right_answer(samples: int, correct: int) -> None:
    answers = [index < correct for index in range(samples)]
    for k in range(1, samples + 1):
        draws = [any(draw) for draw in itertools.combinations(answers, k)]
        assert pass_at_k(samples, correct, k) == pytest.approx(sum(draws) / len(draws))


@pytest.mark.parametrize(("samples", "correct", "k"), [(4, 1, 0), (4, 1, 5), (4, 5, 1), (4, -1, 1)])
def test_impossible_counts_are_refused(samples: int, correct: int, k: int) -> None:
    with pytest.raises(ValueError, match="pass_at_k: "):
        pass_at_k(samples, correct, k)


def test_the_interval_of_yes_or_no_values_is_wilsons() -> None:
    estimate = mean_estimate([1.0] * 10 + [0.0] * 90)
    assert (estimate.low, estimate.high) == pytest.approx((0.0552, 0.1744), abs=2e-3)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_problems_that_all_agree_still_leave_an_uncertainty(value: float) -> None:
    estimate = mean_estimate([value] * 20)
    assert 0.1 < estimate.high - estimate.low < 0.3
    assert estimate.low <= value <= estimate.high


def test_several_samples_count_for_less_than_as_many_problems() -> None:
    torch.manual_seed(0)
    chance = torch.rand(50, 1)
    answers = (torch.rand(50, 4) < chance).double()
    clustered = mean_estimate(answers.mean(1).tolist())
    pooled = mean_estimate(answers.flatten().tolist())
    assert clustered.high - clustered.low > 1.2 * (pooled.high - pooled.low)


def test_the_interval_of_the_mean_covers_the_truth_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(400):
        chance = 0.3 * torch.rand(80, 1, generator=generator)  # mean 0.15
        values = (torch.rand(80, 4, generator=generator) < chance).double().mean(1)
        estimate = mean_estimate(values.tolist())
        covered += estimate.low <= 0.15 <= estimate.high
    assert 0.92 <= covered / 400 <= 0.985


def test_a_paired_difference_ignores_how_hard_the_problems_are() -> None:
    torch.manual_seed(0)
    hardness = torch.rand(100).round(decimals=3)
    estimate = mean_difference((hardness + 0.1).tolist(), hardness.tolist())
    assert estimate.value == pytest.approx(0.1, abs=1e-5)
    assert estimate.high - estimate.low < 1e-4
    assert math.isinf(mean_difference([1.0], [0.0]).high)


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        (Estimate(0.05, 0.01, 0.09), "AutoDeco beat greedy on pass@1 here: +5.0 points"),
        (Estimate(-0.05, -0.09, -0.01), "AutoDeco lost to greedy on pass@1 here: -5.0 points"),
        (Estimate(0.05, -0.01, 0.11), "AutoDeco did not beat greedy on pass@1 here: +5.0 points"),
        (Estimate(0.0, 0.0, 0.0), "AutoDeco did not beat greedy on pass@1 here: +0.0 points"),
    ],
)
def test_the_verdict_says_what_the_interval_allows(difference: Estimate, said: str) -> None:
    sentence = Verdict("pass@1", "greedy", difference).sentence()
    assert sentence.startswith(said)
    assert ("includes zero" in sentence) == ("did not beat" in sentence)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return AutoDecoModelForCausalLM.from_base(word_model()).eval()


def test_answers_through_the_shared_prefix_are_those_of_the_whole_prompt(model) -> None:
    tokenizer = word_tokenizer()
    answerer = Answerer(model, tokenizer, PROMPT, max_new_tokens=8)
    answers = answerer.answer(made_up_problems(7), [GREEDY], samples=1, seed=0)["greedy"]
    for answer in answers:
        text = PROMPT.prefix + PROMPT.question(answer.problem.question)
        whole = torch.tensor([tokenizer(text)["input_ids"]])
        expected = model.generate(
            whole,
            attention_mask=torch.ones_like(whole),
            do_sample=False,
            max_new_tokens=8,
            eos_token_id=answerer.stop_ids,
            pad_token_id=answerer.pad_id,
        )
        assert answer.token_ids == expected[0, whole.shape[1] :].tolist()


def test_an_answer_does_not_depend_on_how_many_are_drawn_at_once(model) -> None:
    problems = made_up_problems(9)
    texts = []
    for rows in (2, 64):
        answerer = Answerer(model, word_tokenizer(), PROMPT, max_new_tokens=8, rows=rows)
        found = answerer.answer(problems, [STATIC, AUTODECO], samples=2, seed=5)
        texts.append([[one.text for one in found[name]] for name in ("T = 1", "AutoDeco")])
    assert texts[0] == texts[1]


def test_answers_come_back_in_the_order_of_the_problems(model) -> None:
    problems = made_up_problems(9)
    answerer = Answerer(model, word_tokenizer(), PROMPT, max_new_tokens=4, rows=4)
    done: list[int] = []
    found = answerer.answer(problems, [GREEDY, STATIC], samples=3, seed=0, progress=done.append)
    for strategy, each in (("greedy", 1), ("T = 1", 3)):
        groups = found[strategy].by_problem
        assert [[one.problem for one in group] for group in groups] == [
            [p] * each for p in problems
        ]
        assert [[one.sample for one in group] for group in groups] == [list(range(each))] * 9
    assert sum(done) == 9 * (1 + 3)


def test_answers_end_at_a_line_break_and_samples_differ(model) -> None:
    answerer = Answerer(model, word_tokenizer(), PROMPT, max_new_tokens=12)
    found = answerer.answer(made_up_problems(10), [STATIC], samples=4, seed=0)["T = 1"]
    answers = list(found)
    assert all("\n" not in one.text[:-1] for one in answers)
    assert any(one.text.endswith("\n") for one in answers)
    assert len({tuple(one.token_ids) for one in answers}) > 10


def test_the_columns_beyond_the_tokenizer_are_never_drawn() -> None:
    torch.manual_seed(0)
    padded = AutoDecoModelForCausalLM.from_base(word_model(vocab=64)).eval()
    answerer = Answerer(padded, word_tokenizer(), PROMPT, max_new_tokens=8)
    found = answerer.answer(made_up_problems(6), [STATIC], samples=4, seed=0)["T = 1"]
    assert max(token for one in found for token in one.token_ids) < len(word_tokenizer())


def test_every_answer_has_a_seed_of_its_own() -> None:
    seeds = {
        answer_seed(seed, problem, sample)
        for seed in range(3)
        for problem in range(50)
        for sample in range(4)
    }
    assert len(seeds) == 600
    assert 0 <= answer_seed(2**31 - 1, 10**6, 4095) < 2**63


def test_line_breaks_are_found_in_the_vocabulary() -> None:
    assert line_break_ids(word_tokenizer(), 11) == [2]


def test_the_comparison_counts_answers_and_averages_tokens(model) -> None:
    answerer = Answerer(model, word_tokenizer(), PROMPT, max_new_tokens=8)
    found = answerer.answer(made_up_problems(12), COMPARED, samples=3, seed=0)
    results = {name: summarise(answers) for name, answers in found.items()}
    for name, answers in found.items():
        right = [[one.correct for one in group] for group in answers.by_problem]
        result = results[name]
        assert result.pass_at_1.value == pytest.approx(sum(map(sum, right)) / sum(map(len, right)))
        if name != "greedy":
            assert result.pass_at_k.value == pytest.approx(sum(map(any, right)) / 12)
        assert result.tokens == sum(len(one.token_ids) for one in answers)
        assert result.tokens_per_second > 0
    assert results["greedy"].pass_at_k is None
    assert results["T = 0.7, P = 0.9"].mean_temperature == pytest.approx(0.7)
    assert results["T = 0.7, P = 0.9"].mean_top_p == pytest.approx(0.9)
    assert 0 < results["AutoDeco"].mean_temperature < 2
    best = max(
        (one for one in results.values() if not one.strategy.uses_heads),
        key=lambda one: one.pass_at_1.value,
    )
    first = verdicts(list(results.values()))[0]
    assert first.rival == best.strategy.name
    assert first.difference.value == pytest.approx(
        results["AutoDeco"].pass_at_1.value - best.pass_at_1.value
    )
