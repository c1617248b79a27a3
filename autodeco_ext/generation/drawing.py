"""The draw inside generate: one sample call per step replaces warpers and multinomial."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from transformers import LogitsProcessor, StoppingCriteriaList

from autodeco_ext.generation.parameters import RULES, SamplingParameters, seeds_for_rows
from autodeco_ext.generation.trace import DecodingTrace
from autodeco_ext.ops import SampleOutput, distribution_stats, filter_logits, sample

# In a ContextVar and not on the model, so that two threads can generate with one model and the
# model stays picklable.
ACTIVE_DRAW: ContextVar[Draw | None] = ContextVar("autodeco_ext_active_draw", default=None)


@dataclass
class _Step:
    """What one step leaves for the trace; every tensor is [rows]."""

    temperature: torch.Tensor
    top_p: torch.Tensor
    kept: torch.Tensor
    logprobs: torch.Tensor
    entropy: torch.Tensor
    unfinished: torch.Tensor


@dataclass
class Draw:
    """The state of one generate call that samples.

    Args:
        owner: the model that generates; a draw is ignored by every other model (a nested generate,
            an assistant).
        overrides: what the caller gave explicitly; temperature and top_p None means the heads'.
        seed: int, int64 [rows], or None: one seed per sequence from torch's global generator.
        valid_vocab: columns at or beyond it do not exist; None for all.
        wants_trace: keep what DecodingTrace needs.
    """

    owner: object
    overrides: SamplingParameters
    seed: int | torch.Tensor | None = None
    valid_vocab: int | None = None
    wants_trace: bool = False
    seeds: torch.Tensor = field(init=False)
    unfinished: torch.Tensor = field(init=False)
    valid: torch.Tensor | None = field(init=False, default=None)
    logits: torch.Tensor | None = field(init=False, default=None)
    scores: torch.Tensor | None = field(init=False, default=None)
    wants_scores: bool = field(init=False, default=False)
    temperature: torch.Tensor = field(init=False)
    top_p: torch.Tensor = field(init=False)
    steps_done: int = field(init=False, default=0)
    history: list[_Step] = field(init=False, default_factory=list)

    def begin(self, rows: int, device: torch.device, wants_scores: bool) -> None:
        """Fix the number of sequences, which generate knows only after expanding its inputs."""
        # The CPU generator whatever the device: torch.manual_seed sets it, and the values are
        # needed as an input.
        seed = torch.randint(-(2**63), 2**63 - 1, (rows,)) if self.seed is None else self.seed
        self.seeds = seeds_for_rows(seed, rows, device, "generate")
        self.overrides = self.overrides.for_rows(rows, device, "generate")
        self.unfinished = torch.ones(rows, dtype=torch.bool, device=device)
        self.wants_scores = wants_scores

    def observe(self, temperature: torch.Tensor, top_p: torch.Tensor) -> None:
        """Take the heads' prediction ([rows] each) for the token that is drawn next."""
        self.temperature, self.top_p = temperature, top_p

    def parameters(self) -> SamplingParameters:
        """The parameters of the next draw, [rows] or scalar: the caller's, else the heads'."""
        given = self.overrides
        return SamplingParameters(
            temperature=self.temperature if given.temperature is None else given.temperature,
            top_p=self.top_p if given.top_p is None else given.top_p,
            top_k=given.top_k,
            min_p=given.min_p,
        )

    def record(
        self, scores: torch.Tensor, parameters: SamplingParameters, drawn: SampleOutput | None
    ) -> None:
        """Keep what trace and output_scores need; scores are what was drawn from."""
        rows, device = len(scores), scores.device
        temperature = torch.as_tensor(
            parameters.temperature, dtype=torch.float32, device=device
        ).expand(rows)
        top_p = torch.as_tensor(parameters.top_p, dtype=torch.float32, device=device).expand(rows)
        if not self.valid.all():
            # Unlike sample, the two ops below refuse invalid rows; whether these matter is for
            # StepEnd to say.
            scores = scores.masked_fill(~self.valid[:, None], 0.0)
            temperature, top_p = temperature.where(self.valid, 1.0), top_p.where(self.valid, 1.0)
        if self.wants_scores:
            filters = (top_p, parameters.top_k, parameters.min_p)
            self.scores = filter_logits(scores, temperature, *filters, valid_vocab=self.valid_vocab)
        if self.wants_trace:
            if self.valid_vocab is not None:
                scores = scores[:, : self.valid_vocab]
            entropy = distribution_stats(scores, temperature)[:, 1]
            step = _Step(temperature, top_p, drawn.kept, drawn.logprobs, entropy, self.unfinished)
            self.history.append(step)

    def what_is_invalid(self, row: int) -> str:
        """Say what made a row of the last draw invalid: its logits, temperature or top_p.

        In this order: with a NaN in the hidden state all three are, and top_p is predicted from
        temperature.
        """
        logits = self.logits[row, : self.valid_vocab]
        if logits.isfinite().any() and not (logits.isnan() | logits.isposinf()).any():
            parameters = self.parameters()
            for name in ("temperature", "top_p"):
                # float32, as in sample: a larger float64 is infinite.
                values = torch.as_tensor(getattr(parameters, name), dtype=torch.float32)
                value = values.expand(len(self.logits))[row].item()
                _, requirement, is_good = RULES[name]
                if not is_good(value):
                    source = "predicted" if getattr(self.overrides, name) is None else "given"
                    return f"the {source} {name} {requirement}, got {value}"
        return "logits must be free of NaN and +inf and have a finite value, got an invalid row"

    def trace(self, sequences: torch.Tensor) -> DecodingTrace:
        """Collect the steps; sequences is what generate returned, [rows, prompt + steps]."""

        def stacked(name: str) -> torch.Tensor:
            return torch.stack([getattr(step, name) for step in self.history], dim=1).cpu()

        return DecodingTrace(
            tokens=sequences[:, sequences.shape[1] - len(self.history) :].cpu(),
            temperature=stacked("temperature"),
            top_p=stacked("top_p"),
            kept=stacked("kept"),
            logprobs=stacked("logprobs"),
            entropy=stacked("entropy"),
            mask=stacked("unfinished"),
        )


class DrawingProcessor(LogitsProcessor):
    """Last in the list: draws the token and returns a row whose argmax is that token."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        draw = self.draw
        parameters = draw.parameters()
        # check=False: a sequence that has ended may have a row without any allowed token (a
        # constraint processor), which must not stop the others. StepEnd raises for rows that
        # matter.
        drawn = sample(
            scores,
            *parameters.settings(),
            seed=draw.seeds,
            offset=torch.full_like(draw.seeds, draw.steps_done),
            valid_vocab=draw.valid_vocab,
            return_info=draw.wants_trace,
            check=False,
        )
        tokens = drawn.tokens if draw.wants_trace else drawn
        draw.valid, draw.logits = tokens >= 0, scores
        if draw.wants_trace or draw.wants_scores:
            draw.record(scores, parameters, drawn if draw.wants_trace else None)
        draw.steps_done += 1
        # An invalid row's -1 must not index; StepEnd raises before the stand-in token reaches the
        # model.
        chosen = torch.full_like(scores, -torch.inf)
        return chosen.scatter_(1, tokens.clamp_min(0)[:, None], 0.0)


class StepEnd(StoppingCriteriaList):
    """The call's stopping criteria, and what happens between a draw and the next forward."""

    def __init__(self, criteria: StoppingCriteriaList, draw: Draw) -> None:
        super().__init__(criteria)
        self.draw = draw

    def __call__(
        self, input_ids: torch.LongTensor, scores: tuple | None, **kwargs
    ) -> torch.BoolTensor:
        draw = self.draw
        if draw.valid is not None:
            invalid = ~draw.valid & draw.unfinished
            if invalid.any():
                row = int(invalid.nonzero()[0])
                raise ValueError(
                    f"autodeco_ext.generate: {draw.what_is_invalid(row)} for sequence {row} at step"
                    f" {draw.steps_done - 1}"
                )
            draw.logits = None  # its memory is free for the forward pass
        if draw.scores is not None:
            # The loop has stored the one-token row that it took the argmax of; people expect the
            # distribution.
            scores[-1].copy_(draw.scores)
            draw.scores = None
        done = super().__call__(input_ids, scores, **kwargs)
        draw.unfinished = draw.unfinished & ~done
        return done
