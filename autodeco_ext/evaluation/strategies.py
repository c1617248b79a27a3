"""Decoding strategies to compare: greedy, fixed (T, P), and what the heads predict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Strategy:
    """How tokens are drawn; temperature None means that the heads predict temperature and top_p.

    Example:
        >>> Strategy("greedy", 0.0).generate_options()
        {'temperature': 0.0, 'top_p': 1.0}
    """

    name: str
    temperature: float | None = None
    top_p: float = 1.0

    @property
    def uses_heads(self) -> bool:
        return self.temperature is None

    @property
    def is_random(self) -> bool:
        """False if one answer to a problem says everything."""
        return self.temperature != 0

    def generate_options(self) -> dict[str, Any]:
        """Arguments for AutoDecoModelForCausalLM.generate."""
        if self.uses_heads:
            return {}
        return {"temperature": self.temperature, "top_p": self.top_p}


GREEDY = Strategy("greedy", 0.0)
AUTODECO = Strategy("AutoDeco")
# The static settings were fixed before anything was measured; the demo does not search for the best
# one.
COMPARED = (
    GREEDY,
    Strategy("T = 1, P = 1", 1.0, 1.0),
    Strategy("T = 0.7, P = 0.9", 0.7, 0.9),
    Strategy("T = 0.3, P = 0.95", 0.3, 0.95),
    AUTODECO,
)
# What the frozen model answers the training problems with: more varied than greedy, more often
# right than T = 1.
COLLECTING = Strategy("T = 0.7, P = 0.95", 0.7, 0.95)
