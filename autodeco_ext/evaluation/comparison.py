"""What the answers of several strategies say: pass@k with intervals, and who is ahead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from autodeco_ext.evaluation.answering import StrategyAnswers
from autodeco_ext.evaluation.pass_at_k import Estimate, mean_difference, mean_estimate, pass_at_k
from autodeco_ext.evaluation.strategies import Strategy


@dataclass(frozen=True)
class StrategyResult:
    """The measurements of one strategy.

    k is the number of samples per problem; pass_at_k is None where there is only one. Means are
    over generated tokens.
    """

    strategy: Strategy
    problems: int
    k: int
    pass_at_1: Estimate
    pass_at_k: Estimate | None
    pass_at_1_by_problem: tuple[float, ...]
    pass_at_k_by_problem: tuple[float, ...]
    mean_temperature: float
    mean_top_p: float
    tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


def summarise(answers: StrategyAnswers) -> StrategyResult:
    """Count one strategy's answers."""
    k = len(answers.by_problem[0])
    correct = [sum(answer.correct for answer in group) for group in answers.by_problem]
    at_1 = [pass_at_k(k, count, 1) for count in correct]
    at_k = [pass_at_k(k, count, k) for count in correct]
    temperatures = [value for answer in answers for value in answer.values("temperature")]
    top_ps = [value for answer in answers for value in answer.values("top_p")]
    return StrategyResult(
        strategy=answers.strategy,
        problems=len(correct),
        k=k,
        pass_at_1=mean_estimate(at_1),
        pass_at_k=mean_estimate(at_k) if k > 1 else None,
        pass_at_1_by_problem=tuple(at_1),
        pass_at_k_by_problem=tuple(at_k),
        mean_temperature=fmean(temperatures),
        mean_top_p=fmean(top_ps),
        tokens=len(temperatures),
        seconds=answers.seconds,
    )


@dataclass(frozen=True)
class Verdict:
    """AutoDeco against the best of the other strategies on one measure."""

    measure: str
    rival: str
    difference: Estimate

    @property
    def won(self) -> bool:
        return self.difference.low > 0

    @property
    def lost(self) -> bool:
        return self.difference.high < 0

    def sentence(self) -> str:
        """Say in one sentence what the interval allows to say.

        Example:
            >>> Verdict("pass@1", "greedy", Estimate(0.1, 0.02, 0.2)).sentence()
            'AutoDeco beat greedy on pass@1 here: +10.0 points, 95 % interval +2.0 to +20.0.'
        """
        low, value, high = (
            f"{100 * one:+.1f}"
            for one in (self.difference.low, self.difference.value, self.difference.high)
        )
        ending = ""
        if self.won:
            said = "beat"
        elif self.lost:
            said = "lost to"
        else:
            said, ending = "did not beat", ", which includes zero"
        return (
            f"AutoDeco {said} {self.rival} on {self.measure} here: {value} points, 95 % interval"
            f" {low} to {high}{ending}."
        )


def verdicts(results: Sequence[StrategyResult]) -> list[Verdict]:
    """Compare AutoDeco with the best strategy without heads, on pass@1 and, if sampled, pass@k.

    The rival is chosen by its result on the very same problems, which favours the rival.
    """
    ours = next(result for result in results if result.strategy.uses_heads)
    others = [result for result in results if not result.strategy.uses_heads]
    found = []
    rival = max(others, key=lambda result: result.pass_at_1.value)
    difference = mean_difference(ours.pass_at_1_by_problem, rival.pass_at_1_by_problem)
    found.append(Verdict("pass@1", rival.strategy.name, difference))
    sampled = [result for result in others if result.pass_at_k is not None]
    if ours.pass_at_k is not None and sampled:
        rival = max(sampled, key=lambda result: result.pass_at_k.value)
        difference = mean_difference(ours.pass_at_k_by_problem, rival.pass_at_k_by_problem)
        found.append(Verdict(f"pass@{ours.k}", rival.strategy.name, difference))
    return found
