"""The demo's experiment: answer, keep what is right, train the heads on it, compare strategies."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from autodeco_ext.evaluation.answering import Answer, Answerer, StrategyAnswers
from autodeco_ext.evaluation.comparison import StrategyResult, Verdict, summarise, verdicts
from autodeco_ext.evaluation.problems import FewShotPrompt, Problem
from autodeco_ext.evaluation.strategies import AUTODECO, COLLECTING, COMPARED, Strategy
from autodeco_ext.training.fit import EpochLoss, FitSettings, cache_positions, fit_heads

# (description, total, unit) -> a context whose value is called with the number of units just done.
ProgressBar = Callable[[str, int, str], AbstractContextManager[Callable[[int], None]]]


class NothingToTrainOn(ValueError):
    """No answer to the training problems was right."""


@dataclass(frozen=True)
class ExperimentSettings:
    """How much is done, and the seed that all randomness comes from."""

    samples: int = 4
    seed: int = 0
    max_new_tokens: int = 20
    rows: int = 64
    fit: FitSettings = field(default_factory=FitSettings)
    prompt: FewShotPrompt = field(default_factory=FewShotPrompt)
    collecting: Strategy = COLLECTING
    compared: tuple[Strategy, ...] = COMPARED


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What was measured."""

    settings: ExperimentSettings
    training: Sequence[Problem]
    held_out: Sequence[Problem]
    collected: StrategyAnswers
    verified: Sequence[Answer]
    positions: int
    losses: Sequence[EpochLoss]
    answers: dict[str, StrategyAnswers]
    results: Sequence[StrategyResult]
    verdicts: Sequence[Verdict]
    seconds: dict[str, float]

    @property
    def ours(self) -> StrategyAnswers:
        """The answers that were decoded with the heads' T and P."""
        return self.answers[AUTODECO.name]


def run_experiment(
    model: Any,
    tokenizer: Any,
    training: Sequence[Problem],
    held_out: Sequence[Problem],
    settings: ExperimentSettings,
    progress_bar: ProgressBar | None = None,
) -> Experiment:
    """Train the heads of model, an AutoDecoModelForCausalLM in eval mode, in place and compare
    strategies.

    Raises:
        NothingToTrainOn: none of the answers to the training problems was right.
    """
    bar = progress_bar or _silent
    seconds: dict[str, float] = {}
    answerer = Answerer(
        model,
        tokenizer,
        settings.prompt,
        max_new_tokens=settings.max_new_tokens,
        rows=settings.rows,
    )

    with _timed(seconds, "answering training problems"):
        total = len(training) * settings.samples
        with bar("frozen model answers training problems", total, "answer") as advance:
            collected = answerer.answer(
                training,
                [settings.collecting],
                samples=settings.samples,
                seed=settings.seed,
                progress=advance,
            )[settings.collecting.name]
    verified = [answer for answer in collected if answer.correct]
    if not verified:
        raise NothingToTrainOn(
            f"none of {total} answers to {len(training)} training problems was right, so there is"
            " nothing to train on"
        )

    with (
        _timed(seconds, "hidden states of the right answers"),
        bar("hidden states of the right answers", len(verified), "answer") as advance,
    ):
        positions = cache_positions(answerer, verified, advance)
    with (
        _timed(seconds, "training the heads"),
        bar("training both heads", settings.fit.steps(len(positions)), "step") as advance,
    ):
        losses = fit_heads(
            model.heads,
            model.get_output_embeddings(),
            positions,
            settings.fit,
            vocab=answerer.vocab,
            progress=lambda _: advance(1),
        )

    with _timed(seconds, "comparing strategies"):
        per_problem = sum(settings.samples if one.is_random else 1 for one in settings.compared)
        with bar(
            "strategies answer held-out problems", len(held_out) * per_problem, "answer"
        ) as advance:
            # Another seed than for collecting, the same for all strategies: they differ in T and P,
            # not in luck.
            answers = answerer.answer(
                held_out,
                settings.compared,
                samples=settings.samples,
                seed=settings.seed + 1,
                progress=advance,
            )
    results = [summarise(one) for one in answers.values()]
    return Experiment(
        settings=settings,
        training=training,
        held_out=held_out,
        collected=collected,
        verified=verified,
        positions=len(positions),
        losses=losses,
        answers=answers,
        results=results,
        verdicts=verdicts(results),
        seconds=seconds,
    )


@contextmanager
def _silent(description: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    yield lambda done: None


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started
