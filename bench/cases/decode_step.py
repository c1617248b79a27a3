"""decode_step(hidden states, logits, heads), H = 4096, beside `sample` alone with the same T and P.

The case's own T and P are not used: the heads predict them.
"""

from __future__ import annotations

import torch

import autodeco_ext
from autodeco_ext import AutoDecoConfig, AutoDecoHeads, DecodeStep, reference
from bench.cases import sample
from bench.providers import Missing, Provider, floor, torch_heads, torch_sort

HIDDEN_SIZE = 4096


class _Model:
    """Heads with the released sizes, and the hidden states of as many rows as asked for."""

    def __init__(self, device: str) -> None:
        torch.manual_seed(0)
        self.heads = AutoDecoHeads(AutoDecoConfig(hidden_size=HIDDEN_SIZE)).to(device)
        with torch.no_grad():
            for parameter in self.heads.parameters():
                parameter *= 3  # T and P that differ from row to row, as trained heads predict
        self.states: dict[tuple[int, torch.dtype], torch.Tensor] = {}
        self.predicted: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def hidden_states(self, logits: torch.Tensor) -> torch.Tensor:
        """[rows, H] in the dtype of the logits, as a model has them."""
        key = (len(logits), logits.dtype)
        if key not in self.states:
            random = torch.Generator().manual_seed(1)
            states = torch.randn(len(logits), HIDDEN_SIZE, generator=random)
            self.states[key] = states.to(logits.device, logits.dtype)
        return self.states[key]

    def step(self, logits: torch.Tensor) -> DecodeStep:
        return autodeco_ext.decode_step(
            self.hidden_states(logits), logits, self.heads, seed=sample.SEED
        )

    def sample_alone(self, logits: torch.Tensor) -> DecodeStep:
        if len(logits) not in self.predicted:  # by the call that is checked and not timed
            self.predicted[len(logits)] = self.heads.predict(self.hidden_states(logits), logits)
        temperature, top_p = self.predicted[len(logits)]
        tokens = autodeco_ext.sample(logits, temperature, top_p, seed=sample.SEED)
        return DecodeStep(tokens, temperature, top_p)

    @torch.no_grad()
    def torch_step(self, logits: torch.Tensor) -> DecodeStep:
        temperature, top_p = torch_heads.predict(self.heads, self.hidden_states(logits), logits)
        return DecodeStep(torch_sort.sample(logits, temperature, top_p), temperature, top_p)

    def prediction_is_right(
        self, step: DecodeStep, logits: torch.Tensor, t: torch.Tensor, p: torch.Tensor
    ) -> bool:
        """T and P are those of the reference in float64, and the token is right for them."""
        hidden, weights = self.hidden_states(logits).double(), self.heads.state_dict()
        for rows in torch.arange(len(logits)).split(32):  # float64 copies of all need memory
            expected = reference.head_predictions(hidden[rows], logits[rows], weights)
            for name, value in expected._asdict().items():
                if (getattr(step, name)[rows] - value).abs().max() > 1e-4:
                    return False
        return is_right(step, logits, t, p)

    def step_is_right(
        self, step: DecodeStep, logits: torch.Tensor, t: torch.Tensor, p: torch.Tensor
    ) -> bool:
        """The same, and the token is the one that the seed stands for."""
        return self.prediction_is_right(step, logits, t, p) and draw_is_right(step, logits, t, p)


def providers(device: str) -> dict[str, Provider | Missing]:
    model = _Model(device)

    return {
        "autodeco_ext": Provider(lambda logits, t, p: model.step(logits), model.step_is_right),
        "sample alone": Provider(lambda logits, t, p: model.sample_alone(logits), draw_is_right),
        "floor": floor.PROVIDER,
        "torch heads and sort": Provider(
            lambda logits, t, p: model.torch_step(logits), model.prediction_is_right, waits=True
        ),
    }


def is_right(step: DecodeStep, logits: torch.Tensor, t: torch.Tensor, p: torch.Tensor) -> bool:
    """The token lies in the nucleus of the T and P it was drawn with."""
    return sample.is_right(step.tokens, logits, step.temperature, step.top_p)


def draw_is_right(step: DecodeStep, logits: torch.Tensor, t: torch.Tensor, p: torch.Tensor) -> bool:
    """The token is the one that the seed stands for, at the T and P it was drawn with."""
    return sample.is_draw_of_seed(step.tokens, logits, step.temperature, step.top_p)
