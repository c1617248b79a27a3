"""The page that `autodeco generate --trace` writes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from autodeco_ext.report.page import definitions, escape, page
from autodeco_ext.report.tokens import TOKEN_SCRIPT, TOKEN_STYLE, legend, token_spans


def trace_page(
    prompt: str,
    records: Sequence[Mapping[str, Any]],
    facts: Sequence[tuple[str, str]],
    *,
    special_ids: Collection[int] = (),
) -> str:
    """HTML of one generated text.

    Args:
        prompt: what the person typed.
        records: DecodingTrace.to_records(tokenizer) of the sequence.
        facts: names and values to list below the text.
        special_ids: the tokenizer's special tokens, shown in grey.
    """
    body = (
        "<h1>Generated text, token by token</h1>"
        f"<h2>Prompt</h2><pre>{escape(prompt)}</pre>"
        f'<h2>Text</h2>{legend()}<p class="text">{token_spans(records, special_ids)}</p>'
        f"<h2>Numbers</h2>{definitions(facts)}"
    )
    return page("AutoDeco: generated text", body, styles=[TOKEN_STYLE], script=TOKEN_SCRIPT)
