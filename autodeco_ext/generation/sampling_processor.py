"""SamplingLogitsProcessor: temperature, top_p, top_k and min_p for models without heads."""

from __future__ import annotations

import torch

from autodeco_ext.generation.mode_processor import Mode, ModeProcessor
from autodeco_ext.generation.parameters import SamplingParameters


class SamplingLogitsProcessor(ModeProcessor):
    """Temperature, top_k, top_p and min_p in one step, in place of the stock warpers.

    Filters run in the order temperature, top_k, top_p, min_p. A logits processor for generate; the
    parameters may differ from row to row. Generate must not add warpers of its own: pass
    **processor.generate_kwargs(). It warns once where generate does, or draws a second time.

    Args:
        temperature: >= 0 (0: the argmax), number or tensor [rows].
        top_p: in [0, 1], number or tensor [rows]; 1 is off.
        top_k: >= 0, int or integer tensor [rows]; 0 or None is off.
        min_p: in [0, 1], number or tensor [rows]; 0 or None is off.
        mode: "filter" returns logits / temperature inside the kept set and -inf outside, for
            do_sample=True. "sample" draws the token itself and leaves only that one finite, for
            do_sample=False, where generate takes the argmax. With do_sample=True, which generate
            asks for where num_return_sequences > 1, the token is the same, whatever warpers run
            behind, but softmax and multinomial run too. In beam search only "filter".
        seed: mode "sample" only: an int s (row r uses s + r) or an int64 tensor [rows]; the draw
            depends on it and on the number of tokens (padding included) before the drawn one.
            None: torch's generator.

    A tensor of parameters may also have one entry per prompt: num_return_sequences repeats it like
    the prompts. Seeds are one per sequence.

    Returns:
        float32 scores [rows, vocab].

    Raises:
        ValueError, TypeError: a parameter out of range or of the wrong type or length, or mode
            "sample" in beam search.

    Example:
        >>> import torch
        >>> processor = SamplingLogitsProcessor(temperature=0.5, top_p=0.9)
        >>> processor(torch.zeros(1, 1, dtype=torch.long), torch.tensor([[2.0, 1.0, -3.0]]))
        tensor([[4., 2., -inf]])
    """

    def __init__(
        self,
        temperature: float | torch.Tensor = 1.0,
        top_p: float | torch.Tensor = 1.0,
        top_k: int | torch.Tensor | None = None,
        min_p: float | torch.Tensor | None = None,
        *,
        mode: Mode = "filter",
        seed: int | torch.Tensor | None = None,
    ) -> None:
        super().__init__("SamplingLogitsProcessor", mode, seed)
        for name, value in (("temperature", temperature), ("top_p", top_p)):
            if value is None:
                raise TypeError(
                    f"autodeco_ext.SamplingLogitsProcessor: {name} must be a number or a tensor,"
                    " got None"
                )
        self.parameters = SamplingParameters(temperature, top_p, top_k, min_p).check(self.owner)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        return self.apply(
            input_ids, scores, self.parameters.for_rows(len(scores), scores.device, self.owner)
        )
