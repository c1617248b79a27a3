"""Generated text, each token coloured by its temperature and underlined by its top-p."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from autodeco_ext.report.page import escape

# Classes and not inline styles: a page holds thousands of tokens. Temperature in steps of 0.05
# around 1, where the model's own distribution is left as it is; top_p in steps of line thickness.
_TEMPERATURE_STEPS = 20
_TOP_P_STEPS = 5


def _styles() -> str:
    rules = []
    for step in range(1, _TEMPERATURE_STEPS + 1):
        share = step / _TEMPERATURE_STEPS
        # Hue as well as strength, so that 0.3 and 0.5 can be told apart: green to violet below 1,
        # yellow to red above.
        for name, hue in (("c", 150 + 120 * share), ("h", 52 - 52 * share)):
            rules.append(
                f"b.{name}{step}"
                f" {{ background: hsla({hue:.0f}, 80%, 55%, {0.12 + 0.5 * share:.2f}); }}"
            )
    for step in range(1, _TOP_P_STEPS + 1):
        rules.append(f"b.u{step} {{ border-bottom-width: {step}px; }}")
    return "\n".join(rules)


TOKEN_STYLE = f"""
.text {{ font: 1rem/2.3 var(--mono); white-space: pre-wrap; overflow-wrap: anywhere; }}
.text b {{
  font-weight: 400; padding: .22em 0 .12em; margin-right: 1px; cursor: default;
  border-bottom: 0 solid var(--cut); border-radius: 2px;
  box-decoration-break: clone; -webkit-box-decoration-break: clone;
}}
.text b:hover, .text b.on {{ outline: 1.5px solid var(--ink); }}
.text i {{ font-style: normal; opacity: .5; }}
.legend {{
  display: flex; flex-wrap: wrap; gap: .4rem 2rem; margin: 1rem 0 .6rem;
  color: var(--soft); font: .875rem/1.5 var(--sans);
}}
.legend .row {{ display: flex; flex-wrap: wrap; align-items: center; gap: 0 1rem; }}
.legend .scale {{ display: inline-flex; align-items: center; gap: .5rem; white-space: nowrap; }}
.swatches {{ display: inline-flex; }}
.swatches b {{ width: .4rem; height: 1.1rem; border-bottom: 0 solid var(--cut); }}
.swatches.lines {{ gap: 4px; }}
.swatches.lines b {{ width: 1.3rem; }}
.tip {{
  position: fixed; z-index: 2; pointer-events: none; white-space: pre;
  background: var(--ink); color: var(--paper); font: 13px/1.45 var(--sans);
  font-variant-numeric: tabular-nums; padding: .5rem .7rem; border-radius: 6px;
  box-shadow: 0 4px 16px rgba(0, 0, 0, .25);
}}
.tip[hidden] {{ display: none; }}
{_styles()}
"""

# Titles serve without scripts; with them the same text appears at once, also on a tap.
TOKEN_SCRIPT = """
(() => {
  const tip = document.createElement('div');
  tip.className = 'tip';
  tip.hidden = true;
  document.body.append(tip);
  for (const token of document.querySelectorAll('.text b[title]')) {
    token.dataset.tip = token.title;
    token.removeAttribute('title');
  }
  let shown = null;
  const show = (token) => {
    if (shown) shown.classList.remove('on');
    shown = token;
    tip.hidden = !token;
    if (!token) return;
    token.classList.add('on');
    tip.textContent = token.dataset.tip;
    const box = token.getClientRects()[0], size = tip.getBoundingClientRect();
    const left = box.left + box.width / 2 - size.width / 2;
    const above = box.top - size.height - 8;
    tip.style.left = Math.min(Math.max(8, left), innerWidth - size.width - 8) + 'px';
    tip.style.top = (above > 4 ? above : box.bottom + 8) + 'px';
  };
  const find = (event) => event.target.closest && event.target.closest('.text b[data-tip]');
  document.addEventListener('pointerover', (event) => show(find(event)));
  document.addEventListener('click', (event) => show(find(event)));
  document.addEventListener('scroll', () => show(null), { passive: true });
})();
"""


def temperature_class(temperature: float) -> str:
    """CSS class of a temperature: c1 .. c20 below 1, h1 .. h20 above, none near 1.

    Example:
        >>> temperature_class(0.5), temperature_class(1.0), temperature_class(1.32)
        ('c10', '', 'h6')
    """
    if not math.isfinite(temperature):
        return ""
    step = round((temperature - 1) * _TEMPERATURE_STEPS)
    step = max(-_TEMPERATURE_STEPS, min(_TEMPERATURE_STEPS, step))
    return f"h{step}" if step > 0 else f"c{-step}" if step < 0 else ""


def top_p_class(top_p: float) -> str:
    """CSS class of a top-p: none at 1, then a line that grows as more is cut off, u5 at 0.

    Example:
        >>> top_p_class(1.0), top_p_class(0.95), top_p_class(0.0)
        ('', 'u1', 'u5')
    """
    if not math.isfinite(top_p) or top_p >= 1:
        return ""
    # Square root: the interesting top-p values lie close to 1.
    share = math.sqrt(1 - max(0.0, top_p))
    return f"u{max(1, min(_TOP_P_STEPS, round(_TOP_P_STEPS * share)))}"


def token_spans(records: Sequence[Mapping[str, Any]], special_ids: Collection[int] = ()) -> str:
    """HTML of the tokens of one sequence, from DecodingTrace.to_records(tokenizer).

    special_ids: the tokenizer's special tokens; grey, for they are no part of the text.
    """
    special = frozenset(special_ids)
    return "".join(
        _span(record, record["token_id"] in special) for record in records if record["text"]
    )


def _span(record: Mapping[str, Any], special: bool) -> str:
    classes = f"{temperature_class(record['temperature'])} {top_p_class(record['top_p'])}".strip()
    text = _visible(record["text"])
    text = f"<i>{text}</i>" if special else text
    attribute = f' class="{classes}"' if classes else ""
    return f'<b{attribute} title="{escape(_tip(record))}">{text}</b>'


def _tip(record: Mapping[str, Any]) -> str:
    kept = record["kept"]
    return (
        f"T {record['temperature']:.3f}   P {record['top_p']:.3f}\n"
        f"kept {kept:,} {'token' if kept == 1 else 'tokens'}\n"
        f"probability {100 * math.exp(record['logprob']):.1f} %  (log {record['logprob']:.3f})\n"
        f"entropy {record['entropy']:.3f} nats"
    )


def _visible(text: str) -> str:
    """Line breaks shown as a sign too, for a token without ink cannot be pointed at."""
    return escape(text).replace("\n", "<i>↵</i>\n")


def legend() -> str:
    """What background and underline mean."""
    swatches = "".join(f'<b class="{temperature_class(step / 10)}"></b>' for step in range(21))
    lines = "".join(
        f'<b class="{top_p_class(value)}"></b>' for value in (1.0, 0.96, 0.84, 0.6, 0.3, 0.0)
    )
    return (
        '<div class="legend">'
        '<span class="row">background: temperature <span class="scale">0 '
        f'<span class="swatches">{swatches}</span> 2</span></span>'
        '<span class="row">underline: top-p <span class="scale">1 '
        f'<span class="swatches lines">{lines}</span> 0</span></span></div>'
        '<p class="small">Green to violet: sharper than the model’s own distribution. No colour: T'
        " = 1. Yellow to red: flatter. The thicker the line, the more of the unlikely tokens is cut"
        " off. Point at a token, or tap it, for its numbers."
        "</p>"
    )
