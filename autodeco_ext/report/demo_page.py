"""The page that `autodeco demo` writes; every number and verdict comes from the experiment."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autodeco_ext.evaluation.comparison import StrategyResult
from autodeco_ext.evaluation.experiment import Experiment
from autodeco_ext.evaluation.pass_at_k import DIFFERENCE_METHOD, INTERVAL_METHOD, Estimate
from autodeco_ext.report.chart import CHART_STYLE, Bar, histogram, interval_chart
from autodeco_ext.report.page import definitions, escape, page, table
from autodeco_ext.report.tokens import TOKEN_SCRIPT, TOKEN_STYLE, legend, token_spans

SHOWN_ANSWERS = 12

_STYLE = """
.answer { border-top: 1px solid var(--rule); padding: .9rem 0 .5rem; }
.answer .text { margin: .2rem 0 .3rem; }
.right { color: var(--good); font-weight: 600; }
"""


@dataclass(frozen=True)
class DemoFacts:
    """What the page says beyond the experiment's own numbers."""

    model_name: str
    data_name: str
    command: str
    use: str
    environment: Sequence[tuple[str, str]]
    other_seconds: dict[str, float]


def demo_page(experiment: Experiment, tokenizer: Any, facts: DemoFacts) -> str:
    """HTML of a finished experiment."""
    body = "".join(
        (
            _opening(experiment, facts),
            _comparison(experiment),
            _texts(experiment, tokenizer),
            _predictions(experiment),
            _method(experiment, facts),
        )
    )
    return page(
        "AutoDeco demo", body, styles=[TOKEN_STYLE, CHART_STYLE, _STYLE], script=TOKEN_SCRIPT
    )


def counted(experiment: Experiment) -> str:
    """How many problems and answers the comparison rests on, in words."""
    samples = experiment.settings.samples
    return (
        f"{len(experiment.held_out)} held-out problems, {samples} {_plural('sample', samples)} each"
        f" (greedy: 1), seed {experiment.settings.seed}"
    )


def _opening(experiment: Experiment, facts: DemoFacts) -> str:
    verdicts = " ".join(_signs(escape(verdict.sentence())) for verdict in experiment.verdicts)
    return (
        "<h1>A language model decoding with its own temperature and top-p</h1>"
        f'<p class="meta">{escape(facts.model_name)} · {escape(facts.data_name)} ·'
        f" {escape(counted(experiment))}</p>"
        "<p>Two small heads read the model’s last hidden state and predict, for every token, the"
        " temperature T and the top-p P that it is drawn with. They were trained a moment ago, on"
        f" {len(experiment.verified)} answers that the frozen model had found by itself and that"
        " were checked to be right. What that bought here, against decoding with fixed"
        " values:</p>"
        f'<p class="lead">{verdicts}</p>'
    )


def _comparison(experiment: Experiment) -> str:
    results, samples = experiment.results, experiment.settings.samples
    once = [(one, one.pass_at_1) for one in results]
    sampled = [(one, one.pass_at_k) for one in results if one.pass_at_k is not None]
    highest = max(estimate.high for _, estimate in once + sampled)
    charts = [_chart("pass@1", once, highest)]
    if sampled:
        charts.append(_chart(f"pass@{samples}", sampled, highest))
    header = ["strategy", "pass@1"]
    header += [f"pass@{samples}"] if sampled else []
    header += ["answers", "mean T", "mean P", "tokens/s"]
    rows = []
    for one in results:
        row = [escape(one.strategy.name), _with_interval(one.pass_at_1)]
        if sampled:
            row.append(_with_interval(one.pass_at_k) if one.pass_at_k else "–")
        row += [
            f"{one.problems * one.k:,}",
            f"{one.mean_temperature:.2f}",
            f"{one.mean_top_p:.2f}",
            f"{one.tokens_per_second:.0f}",
        ]
        rows.append(row)
    ours = next(index for index, one in enumerate(results) if one.strategy.uses_heads)
    return (
        "<h2>Comparison</h2>"
        f'<figure><div class="charts">{"".join(charts)}</div><figcaption>'
        f"<p>Share of problems solved on {escape(counted(experiment))}. pass@k: at least one of k"
        " answers is right; greedy gives one answer only. Bars:"
        f" {INTERVAL_METHOD}.</p></figcaption></figure>{table(header, rows, ours)}"
        '<div class="small"><p>The verdict above compares AutoDeco with whichever other strategy'
        " did best on these very problems, which favours that strategy; both answered the same"
        f" problems, and its interval is a {DIFFERENCE_METHOD}. This is one run with one seed. The"
        " static settings were fixed beforehand.</p>"
        f"<p>tokens/s: while decoding, {experiment.settings.rows} sequences at a time, without the"
        " reading of the prompts. It moves with whatever else the machine is doing: differences"
        " between strategies say little.</p></div>"
    )


def _chart(measure: str, pairs: Sequence[tuple[StrategyResult, Estimate]], highest: float) -> str:
    bars = [Bar(one.strategy.name, value, one.strategy.uses_heads) for one, value in pairs]
    said = "; ".join(f"{bar.name} {bar.estimate.value:.1%}" for bar in bars)
    return (
        f'<div><p class="label">{escape(measure)}</p>'
        f"{interval_chart(bars, f'{measure}: {said}', highest)}</div>"
    )


def _texts(experiment: Experiment, tokenizer: Any) -> str:
    shown = [group[0] for group in experiment.ours.by_problem[:SHOWN_ANSWERS]]
    special_ids = tokenizer.all_special_ids
    parts = []
    for answer in shown:
        said = '<span class="right">right</span>' if answer.correct else "wrong"
        parts.append(
            f'<div class="answer"><div>{escape(answer.problem.question)}</div>'
            f'<p class="text">{token_spans(answer.records(tokenizer), special_ids)}</p>'
            f'<div class="meta">{said}, expected {answer.problem.answer:g}</div></div>'
        )
    return (
        "<h2>Its answers, token by token</h2>"
        f"<p>The first answer to each of the first {len(shown)} held-out problems, in the random"
        f" order they were drawn in. Nothing was selected.</p>{legend()}{''.join(parts)}"
    )


def _predictions(experiment: Experiment) -> str:
    temperatures = [value for one in experiment.ours for value in one.values("temperature")]
    top_ps = [value for one in experiment.ours for value in one.values("top_p")]
    charts = (
        ("temperature", histogram(temperatures, 2.0, "Histogram of predicted temperatures")),
        ("top-p", histogram(top_ps, 1.0, "Histogram of predicted top-p")),
    )
    figures = "".join(f'<div><p class="label">{name}</p>{chart}</div>' for name, chart in charts)
    return (
        f'<h2>What the heads predict</h2><figure><div class="charts">{figures}</div><figcaption>'
        f"Shares of all {len(temperatures):,} tokens that AutoDeco generated here."
        "</figcaption></figure>"
    )


def _method(experiment: Experiment, facts: DemoFacts) -> str:
    settings, fit = experiment.settings, experiment.settings.fit
    collected = sum(len(group) for group in experiment.collected.by_problem)
    verified = len(experiment.verified)
    first, last = experiment.losses[0], experiment.losses[-1]
    examples = settings.prompt.examples
    pairs = {
        "base model": f"{facts.model_name}, frozen",
        "problems": facts.data_name,
        "training answers": f"{collected:,} to {len(experiment.training)} problems, drawn with"
        f" {settings.collecting.name}; {verified} right ({verified / collected:.1%})",
        "training": f"both heads on {experiment.positions:,} token positions, {fit.epochs} epochs,"
        f" AdamW, learning rate {fit.learning_rate:g}, {fit.positions_per_step} positions a step,"
        " the released losses",
        "loss, first and last epoch": f"{first.loss:.4f}, {last.loss:.4f} (temperature"
        f" {first.temperature_loss:.4f}, {last.temperature_loss:.4f}; top-p"
        f" {first.top_p_loss:.4f}, {last.top_p_loss:.4f})",
        "prompt": f"{len(examples)} worked examples, then the question; the first example: Q:"
        f" {examples[0].question} A: {examples[0].answer}",
        "origin of the prompt": settings.prompt.origin,
        "an answer": f"ends at a line break or after {settings.max_new_tokens} tokens; its number"
        " is compared with the expected one",
        "held-out problems": "no question occurs in training, counting questions that differ only"
        " in their numbers as the same",
        "randomness": "the same seeds for every strategy; the same command gives the same numbers"
        " on the same machine with the same number of threads",
    }
    seconds = {**facts.other_seconds, **experiment.seconds}
    pairs |= {name: f"{value:.0f} s" for name, value in seconds.items()}
    pairs |= dict(facts.environment)
    return (
        f"<h2>Method</h2>{definitions(pairs.items())}"
        f"<h2>Do it again</h2><pre>{escape(facts.command)}</pre>"
        f"<p>The heads are on disk. Try them:</p><pre>{escape(facts.use)}</pre>"
    )


def _with_interval(value: Estimate) -> str:
    return (
        f'{100 * value.value:.1f} % <span class="interval">'
        f"[{100 * value.low:.1f}, {100 * value.high:.1f}]</span>"
    )


def _signs(text: str) -> str:
    """Minus signs for hyphens and unbreakable per cents, which a terminal may not have."""
    return re.sub(r"(?<= )-(?=\d)", "−", text).replace(" %", "\u00a0%")


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"
