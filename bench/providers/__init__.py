"""What ops are compared with, one module per peer. A provider that cannot run says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

PEERS = Path(__file__).resolve().parent.parent / "peers"  # filled by bench/fetch_peers.py
NOT_FETCHED = "not installed: run python bench/fetch_peers.py"

Run = Callable[..., Any]
Check = Callable[..., bool]


class Provider(NamedTuple):
    """One way to compute what a case measures.

    Attributes:
        run: `run(logits [rows, vocab], temperature [rows], top_p [rows])`, and what the case adds.
        is_right: `is_right(result, *arguments of run)`, instead of the case's own check.
        unchecked: why the result is not judged at all.
        refuses: `refuses(*arguments of run)`: why it cannot run with these, or "".
        errors: `errors(result, *arguments of run)`, by name: what is recorded beside the check.
        kept_tokens: `kept_tokens(*arguments of run)`: how many tokens a row keeps in the
            mean, which is recorded.
        waits: reads a value on the host, so that a CUDA graph cannot hold it.
        package: `name==version` of a peer that is not torch; goes into the record.
    """

    run: Run
    is_right: Check | None = None
    unchecked: str = ""
    errors: Callable[..., dict[str, float]] | None = None
    refuses: Callable[..., str] | None = None
    kept_tokens: Callable[..., float] | None = None
    waits: bool = False
    package: str = ""


def refuses_zero_temperature(logits: Any, temperature: Any, *_: Any) -> str:
    """For providers that divide by T: a row of NaN can end more than the call, on CUDA."""
    return "divides by T, and a row has T = 0" if bool((temperature == 0).any()) else ""


class Missing(NamedTuple):
    """Stands in the table for a provider that cannot run here."""

    reason: str
