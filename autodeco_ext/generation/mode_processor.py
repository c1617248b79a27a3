"""What both logits processors are: a filter or a draw, with seeds, that looks at its generate."""

from __future__ import annotations

import sys
import warnings
from typing import Any, Literal

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation import logits_process

from autodeco_ext.generation.parameters import SamplingParameters, check_seed, seeds_for_rows
from autodeco_ext.ops import filter_logits, sample

Mode = Literal["filter", "sample"]

# What generate appends behind a caller's processor when do_sample=True.
_WARPERS = tuple(
    getattr(logits_process, f"{name}Warper")
    for name in (
        "TemperatureLogits",
        "TopHLogits",
        "TopKLogits",
        "TopPLogits",
        "MinPLogits",
        "TypicalLogits",
        "EpsilonLogits",
        "EtaLogits",
    )
    if hasattr(logits_process, f"{name}Warper")
)


class ModeProcessor(LogitsProcessor):
    """A logits processor that filters or draws, as its mode says, with parameters of a subclass."""

    def __init__(self, owner: str, mode: Mode, seed: int | torch.Tensor | None) -> None:
        if mode not in ("filter", "sample"):
            raise ValueError(
                f"autodeco_ext.{owner}: mode must be 'filter' or 'sample', got {mode!r}"
            )
        check_seed(seed, owner)
        if seed is not None and mode == "filter":
            raise ValueError(
                f"autodeco_ext.{owner}: seed requires mode='sample' (in mode 'filter' generate"
                f" itself draws, with torch's generator), got {seed!r}"
            )
        self.owner, self.mode, self.seed = owner, mode, seed
        self._warned = False

    def generate_kwargs(self) -> dict[str, Any]:
        """Return keyword arguments with which generate adds nothing of its own.

        In mode "filter" generate samples, without warpers. In mode "sample" it takes the argmax,
        which is the token drawn here. It then refuses num_return_sequences > 1: pass
        do_sample=True instead of these arguments there.
        """
        if self.mode == "sample":
            return {"do_sample": False}
        return {
            "do_sample": True,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": None,
            "top_h": None,
            "typical_p": 1.0,
            "epsilon_cutoff": 0.0,
            "eta_cutoff": 0.0,
        }

    def apply(
        self, input_ids: torch.Tensor, scores: torch.Tensor, parameters: SamplingParameters
    ) -> torch.Tensor:
        """Filter or draw; parameters are scalars or [rows]."""
        self._look_at_generate()
        settings = parameters.settings()
        if self.mode == "filter":
            return filter_logits(scores, *settings)
        tokens = self._draw(input_ids, scores, settings)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0.0)

    def _draw(self, input_ids: torch.Tensor, scores: torch.Tensor, settings: tuple) -> torch.Tensor:
        if self.seed is None:
            return sample(scores, *settings, check=True)
        seeds = seeds_for_rows(self.seed, len(scores), scores.device, self.owner)
        # A processor is not told how long the prompt was, and must not keep count (one object
        # serves many calls).
        offsets = torch.full_like(seeds, input_ids.shape[1])
        return sample(scores, *settings, seed=seeds, offset=offsets, check=True)

    def neighbours(self) -> tuple[list, list]:
        """Return the processors of this generate call that run before and after this one.

        Both are empty where no generate call is on the stack.
        """
        processors, _ = self._loop()
        place = next((i for i, p in enumerate(processors) if p is self), len(processors))
        return processors[:place], processors[place + 1 :]

    def _loop(self) -> tuple[list, GenerationConfig | None]:
        """Return all processors of this generate call and its configuration.

        The list that calls us and generate's loop, which calls the list, are the only places that
        know; they are found on the stack. Empty and None without them.
        """
        frame = sys._getframe(1)
        while frame is not None:
            caller = frame.f_locals.get("self")
            if isinstance(caller, LogitsProcessorList):
                loop = frame.f_back
                config = None if loop is None else loop.f_locals.get("generation_config")
                return list(caller), config if isinstance(config, GenerationConfig) else None
            frame = frame.f_back
        return [], None

    def _look_at_generate(self) -> None:
        """Refuse to draw for beams; warn once where generate undoes or repeats the work."""
        _, config = self._loop()
        num_beams = 1 if config is None else config.num_beams or 1
        if self.mode == "sample" and num_beams > 1:
            raise ValueError(
                f"autodeco_ext.{self.owner}: mode must be 'filter' in beam search, which compares"
                f" the scores of many tokens, got 'sample' with num_beams={num_beams}"
            )
        fault = None if self._warned else self._fault(config, num_beams)
        if fault is not None:
            self._warned = True
            warnings.warn(f"autodeco_ext.{self.owner}: {fault}", stacklevel=3)

    def _fault(self, config: GenerationConfig | None, num_beams: int) -> str | None:
        """What generate does that it should not, and what to pass instead."""
        if self.mode == "filter":
            # A bare do_sample=True adds TopK(50).
            behind = [type(p).__name__ for p in self.neighbours()[1] if isinstance(p, _WARPERS)]
            if behind:
                return (
                    f"generate runs {', '.join(behind)} after this processor, so tokens do not"
                    " follow its distribution; pass **processor.generate_kwargs() to generate, or"
                    " use mode='sample'"
                )
            # The argmax, which no filter changes. Beams compare scores.
            if config is not None and not config.do_sample and num_beams == 1:
                return (
                    "mode='filter' with do_sample=False is greedy decoding, whatever the"
                    " parameters; pass **processor.generate_kwargs() to generate, or use"
                    " mode='sample'"
                )
            return None
        # Several sequences of a prompt are taken by generate with do_sample=True only.
        if config is None or not config.do_sample or (config.num_return_sequences or 1) > 1:
            return None
        return (
            "mode='sample' has drawn the token, so do_sample=True only adds the time of generate's"
            " own warpers, softmax and multinomial; pass **processor.generate_kwargs() to generate,"
            " or do_sample=False"
        )
