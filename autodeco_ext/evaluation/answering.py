"""Answers of a model to many problems: each prompt is read once, however many answers it gets."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from transformers import DynamicCache

from autodeco_ext.evaluation.problems import FewShotPrompt, Problem, is_correct
from autodeco_ext.evaluation.strategies import Strategy

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Answer:
    """One generated answer.

    trace is the DecodingTrace of the batch it was generated in, row its row there.
    """

    problem: Problem
    problem_index: int
    sample: int
    text: str
    correct: bool
    trace: Any
    row: int

    @property
    def token_ids(self) -> list[int]:
        return self.trace.tokens[self.row][self.trace.mask[self.row]].tolist()

    def values(self, name: str) -> list[float]:
        """One field of the trace, for the tokens of this answer."""
        return getattr(self.trace, name)[self.row][self.trace.mask[self.row]].tolist()

    def records(self, tokenizer: Any) -> list[dict[str, Any]]:
        """What DecodingTrace.to_records says about this answer."""
        row = slice(self.row, self.row + 1)
        parts = {one.name: getattr(self.trace, one.name)[row] for one in fields(self.trace)}
        return type(self.trace)(**parts).to_records(tokenizer)[0]


@dataclass
class Prompts:
    """Prompts that the model has read: their cache lacks only the last token of each."""

    problems: list[Problem]
    indices: list[int]
    # Padding is between the shared prefix and the question.
    input_ids: torch.Tensor  # [problems, length]
    attention_mask: torch.Tensor  # [problems, length]
    cache: DynamicCache

    def part(self, rows: range) -> Prompts:
        """Some of the prompts, with a cache of their own."""
        chosen = slice(rows.start, rows.stop)
        cache = copy.deepcopy(self.cache)
        if len(rows) < len(self.problems):
            cache.batch_select_indices(
                torch.arange(rows.start, rows.stop, device=cache.layers[0].keys.device)
            )
        return Prompts(
            self.problems[chosen],
            self.indices[chosen],
            self.input_ids[chosen],
            self.attention_mask[chosen],
            cache,
        )


class Answerer:
    """Draws answers from an AutoDecoModelForCausalLM.

    The few-shot prefix is read once; questions are padded on their left, behind the prefix, where
    the attention mask is 0. An answer ends at a line break, at the end-of-text token or after
    max_new_tokens.

    Args:
        model: an AutoDecoModelForCausalLM, in eval mode.
        tokenizer: its tokenizer.
        prompt: the worked examples.
        max_new_tokens: longest answer.
        rows: sequences decoded at a time.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        prompt: FewShotPrompt,
        *,
        max_new_tokens: int = 32,
        rows: int = 64,
    ) -> None:
        self.model, self.tokenizer, self.prompt = model, tokenizer, prompt
        self.max_new_tokens, self.rows = max_new_tokens, rows
        self.vocab = min(model.config.get_text_config().vocab_size, len(tokenizer))
        self.stop_ids = line_break_ids(tokenizer, self.vocab)
        eos = model.generation_config.eos_token_id
        for one in eos if isinstance(eos, list) else [eos, tokenizer.eos_token_id]:
            if one is not None and one not in self.stop_ids:
                self.stop_ids.append(one)
        self.pad_id = self.stop_ids[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.prefix_ids = torch.tensor([tokenizer(prompt.prefix)["input_ids"]], dtype=torch.long)
        self._prefix_cache: DynamicCache | None = None

    def answer(
        self,
        problems: Sequence[Problem],
        strategies: Sequence[Strategy],
        *,
        samples: int,
        seed: int,
        progress: Progress | None = None,
    ) -> dict[str, StrategyAnswers]:
        """Return each strategy's answers by its name: samples to each problem, one if not random.

        The seed of an answer is a function of seed, the problem's position and the sample's number
        alone. progress is called with the number of answers finished since its last call.
        """
        results = {one.name: StrategyAnswers(one, [[] for _ in problems]) for one in strategies}
        for prompts in self.read(problems):
            for strategy in strategies:
                each = samples if strategy.is_random else 1
                at_once = max(1, self.rows // each)
                for start in range(0, len(prompts.problems), at_once):
                    part = prompts.part(range(start, min(start + at_once, len(prompts.problems))))
                    started = time.perf_counter()
                    answers = self._draw(part, strategy, each, seed)
                    result = results[strategy.name]
                    result.seconds += time.perf_counter() - started
                    for answer in answers:
                        result.by_problem[answer.problem_index].append(answer)
                    if progress is not None:
                        progress(len(answers))
        return results

    def read(self, problems: Sequence[Problem]) -> Iterator[Prompts]:
        """Yield the problems in batches of about equally long questions, read by the model."""
        questions = [self.question_ids(problem) for problem in problems]
        by_length = sorted(range(len(problems)), key=lambda index: len(questions[index]))
        for start in range(0, len(problems), self.rows):
            indices = by_length[start : start + self.rows]
            input_ids, mask = self.padded([questions[index] for index in indices])
            cache = self.prefix_cache(len(indices))
            if input_ids.shape[1] - 1 > self.prefix_ids.shape[1]:
                self.forward(input_ids[:, :-1], mask[:, :-1], cache, logits_to_keep=1)
            yield Prompts([problems[index] for index in indices], indices, input_ids, mask, cache)

    def question_ids(self, problem: Problem) -> list[int]:
        """The tokens of a problem's question, behind those of the shared prefix."""
        text = self.prompt.question(problem.question)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def padded(self, questions: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return input_ids and attention_mask, [rows, length], of prefix + padding + question."""
        longest = max(len(one) for one in questions)
        rows = [[self.pad_id] * (longest - len(one)) + one for one in questions]
        mask = [[0] * (longest - len(one)) + [1] * len(one) for one in questions]
        prefix = self.prefix_ids.expand(len(rows), -1)
        input_ids = torch.cat([prefix, torch.tensor(rows)], 1)
        return input_ids, torch.cat([torch.ones_like(prefix), torch.tensor(mask)], 1)

    @torch.no_grad()
    def prefix_cache(self, rows: int) -> DynamicCache:
        """Keys and values of the shared prefix, for this many rows."""
        if self._prefix_cache is None:
            cache = DynamicCache(config=self.model.config)
            self.model(
                self.prefix_ids.to(self.model.device), past_key_values=cache, logits_to_keep=1
            )
            self._prefix_cache = cache
        cache = copy.deepcopy(self._prefix_cache)
        cache.batch_repeat_interleave(rows)
        return cache

    @torch.no_grad()
    def forward(
        self,
        input_ids: torch.Tensor,
        mask: torch.Tensor,
        cache: DynamicCache,
        *,
        logits_to_keep: int,
    ) -> Any:
        """Run the model over the columns of input_ids that the cache has not seen yet."""
        device, seen = self.model.device, cache.get_seq_length()
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        return self.model(
            input_ids[:, seen:].to(device),
            attention_mask=mask.to(device),
            position_ids=positions[:, seen:].to(device),
            past_key_values=cache,
            logits_to_keep=logits_to_keep,
        )

    def _draw(self, prompts: Prompts, strategy: Strategy, samples: int, seed: int) -> list[Answer]:
        device, cache = self.model.device, prompts.cache
        cache.batch_repeat_interleave(samples)
        seeds = [
            answer_seed(seed, index, sample)
            for index in prompts.indices
            for sample in range(samples)
        ]
        output = self.model.generate(
            input_ids=prompts.input_ids.repeat_interleave(samples, 0).to(device),
            attention_mask=prompts.attention_mask.repeat_interleave(samples, 0).to(device),
            past_key_values=cache,
            do_sample=True,
            max_new_tokens=self.max_new_tokens,
            eos_token_id=self.stop_ids,
            pad_token_id=self.pad_id,
            valid_vocab=self.vocab,
            seed=torch.tensor(seeds, dtype=torch.int64),
            return_trace=True,
            **strategy.generate_options(),
        )
        trace = output.trace
        answers = []
        for row in range(len(trace)):
            problem = prompts.problems[row // samples]
            text = self.tokenizer.decode(
                trace.tokens[row][trace.mask[row]], skip_special_tokens=True
            )
            correct = is_correct(text, problem.answer)
            index = prompts.indices[row // samples]
            answers.append(Answer(problem, index, row % samples, text, correct, trace, row))
        return answers


@dataclass
class StrategyAnswers:
    """All answers of one strategy and the time decoding them took, without reading the prompts."""

    strategy: Strategy
    by_problem: list[list[Answer]]
    seconds: float = 0.0

    def __iter__(self) -> Iterator[Answer]:
        for answers in self.by_problem:
            yield from answers


def answer_seed(seed: int, problem_index: int, sample: int) -> int:
    """A seed of its own for every answer: offsets within one seed are the tokens of one answer."""
    return ((seed * 1_000_003 + problem_index) * 4096 + sample) % 2**63


def line_break_ids(tokenizer: Any, vocab: int) -> list[int]:
    """Ids of the tokens that contain a line break."""
    texts = tokenizer.batch_decode([[index] for index in range(vocab)])
    return [index for index, text in enumerate(texts) if "\n" in text]
