"""For tests of the benchmark program: records, made up, and a small model in place of a large."""

from __future__ import annotations

import pytest

from bench.cases import head_training_step
from bench.runner import OK, Shape

# Of a machine with a GPU, as made up as the times.
FACTS = {"gpu": "a GPU", "torch": "2.11", "commit": "abc", "architectures": "90a", "driver": "1"}

SHAPE = Shape("sample", "peaked", 3, 500, "float32")


def record(provider: str, time: float | None = 10.0, shape: Shape = SHAPE, **extra) -> dict:
    result = {**shape._asdict(), "provider": provider, "check": OK, **extra}
    if time is not None:
        result["microseconds"] = {
            "median": time,
            "percentile_20": 0.9 * time,
            "percentile_80": 1.1 * time,
        }
    return result


def use_small_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """The base of head_training_step."""
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    monkeypatch.setattr(head_training_step, "SIZES", sizes)
