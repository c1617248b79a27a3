"""Pure torch with a window: the 1024 largest logits, and a sort where they do not hold the nucleus.

Exact: the window's mass is compared with P times the mass of the whole row. Looking at that costs a
wait for the device, which is cheap on a CPU. Compiled, these are two graphs with that look between
them, because the branch on data would break one.
"""

from __future__ import annotations

import torch
from torch._dynamo.decorators import mark_unbacked

from bench.cases.kept_bounds import token_up_to_ties_is_right
from bench.providers import Provider, Run, torch_sort
from bench.providers.compiled import compiled

WINDOW = 1024


def _draw_in_window(
    logits: torch.Tensor, temperature: torch.Tensor, top_p: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A token per row, int64 [rows]; where the window does not hold the nucleus, bool [rows]."""
    scaled = torch_sort.scaled_logits(logits, temperature)
    values, tokens = scaled.topk(min(WINDOW, scaled.shape[-1]), dim=-1)
    probs = (values - scaled.logsumexp(-1, keepdim=True)).exp()
    total = probs.cumsum(-1)
    probs = probs.masked_fill(total - probs >= top_p[:, None], 0.0)
    drawn = tokens.gather(-1, probs.multinomial(1))[:, 0]
    return drawn, (total[:, -1] < top_p) & (scaled.shape[-1] > WINDOW)


def _sampler(draw_in_window: Run, draw: Run) -> Run:
    def sample(
        logits: torch.Tensor, temperature: torch.Tensor, top_p: torch.Tensor
    ) -> torch.Tensor:
        """One token per row, int64 [rows]."""
        drawn, short = draw_in_window(logits, temperature, top_p)
        if bool(short.any()):
            drawn[short] = draw(logits[short], temperature[short], top_p[short])
        return drawn

    return sample


_sorted_graph = compiled(torch_sort.sample)


def _draw_compiled(*arguments: torch.Tensor) -> torch.Tensor:
    """One graph for one row, too: else the first batch with one short row is timed compiling."""
    for argument in arguments:
        mark_unbacked(argument, 0)
    return _sorted_graph(*arguments)


_SAMPLERS = (
    _sampler(_draw_in_window, torch_sort.sample),
    _sampler(compiled(_draw_in_window), _draw_compiled),
)
SAMPLE, SAMPLE_COMPILED = (
    Provider(sample, token_up_to_ties_is_right, waits=True) for sample in _SAMPLERS
)
