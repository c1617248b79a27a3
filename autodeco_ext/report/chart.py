"""Charts as inline SVG; x positions are percentages, so text keeps its size on a phone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autodeco_ext.evaluation.pass_at_k import Estimate
from autodeco_ext.report.page import escape

CHART_STYLE = """
svg.chart { display: block; width: 100%; overflow: visible; font: 13px var(--sans); }
svg.chart text { fill: var(--ink); }
svg.chart .axis { fill: var(--soft); font-size: 12px; }
svg.chart .grid { stroke: var(--rule); stroke-width: 1; }
svg.chart .bar { stroke: var(--soft); stroke-width: 2; }
svg.chart .dot { fill: var(--soft); }
svg.chart .ours .bar { stroke: var(--accent); stroke-width: 2.5; }
svg.chart .ours .dot { fill: var(--accent); }
svg.chart .ours text { fill: var(--accent); font-weight: 600; }
svg.chart .fill { fill: var(--accent); opacity: .8; }
.charts {
  display: grid; gap: 1.2rem 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(19rem, 100%), 1fr));
}
.label { font: 600 .875rem var(--sans); margin: 0 0 .4rem; }
"""

# The plot area, in per cent of the width: names to its left, values to its right.
_LEFT, _RIGHT = 41.0, 84.0
_ROW = 34


@dataclass(frozen=True)
class Bar:
    """One row of an interval chart; estimate is in [0, 1]."""

    name: str
    estimate: Estimate
    highlighted: bool = False


def interval_chart(bars: Sequence[Bar], description: str, highest: float) -> str:
    """Points with error bars, one row each, on a percentage axis from 0 to highest or just above.

    Charts that are to be compared by eye get the same highest.
    """
    top = _round_up(highest)
    step = top / 4

    def x(share: float) -> str:
        return f"{_LEFT + (_RIGHT - _LEFT) * share / top:.2f}%"

    height = _ROW * len(bars) + 24
    parts = [f'<svg class="chart" role="img" aria-label="{escape(description)}" height="{height}">']
    for tick in range(5):
        at = x(tick * step)
        parts.append(f'<line class="grid" x1="{at}" x2="{at}" y1="0" y2="{height - 22}"/>')
        unit = " %" if tick == 4 else ""
        parts.append(
            f'<text class="axis" x="{at}" y="{height - 6}"'
            f' text-anchor="middle">{100 * tick * step:g}{unit}</text>'
        )
    for row, bar in enumerate(bars):
        middle = _ROW * row + _ROW // 2
        low, value, high = (
            x(one) for one in (bar.estimate.low, bar.estimate.value, bar.estimate.high)
        )
        group = ' class="ours"' if bar.highlighted else ""
        caps = "".join(
            f'<line class="bar" x1="{end}" x2="{end}" y1="{middle - 5}" y2="{middle + 5}"/>'
            for end in (low, high)
        )
        parts.append(
            f'<g{group}><text x="0" y="{middle + 4}">{escape(bar.name)}</text>'
            f'<line class="bar" x1="{low}" x2="{high}" y1="{middle}" y2="{middle}"/>{caps}'
            f'<circle class="dot" cx="{value}" cy="{middle}" r="5"/>'
            f'<text x="100%" y="{middle + 4}" text-anchor="end">{100 * bar.estimate.value:.1f}'
            " %</text></g>"
        )
    return "".join(parts) + "</svg>"


def histogram(values: Sequence[float], upper: float, description: str, bins: int = 40) -> str:
    """Shares of values in [0, upper], as columns over an axis from 0 to upper."""
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, max(0, int(value / upper * bins)))] += 1
    tallest, height = max(counts), 110
    parts = [
        f'<svg class="chart" role="img" aria-label="{escape(description)}" height="{height + 22}">'
    ]
    for index, count in enumerate(counts):
        if count:
            tall = max(1.0, height * count / tallest)
            parts.append(
                f'<rect class="fill" x="{100 * index / bins:.2f}%" width="{90 / bins:.2f}%"'
                f' y="{height - tall:.1f}" height="{tall:.1f}"><title>{upper * index / bins:g} to'
                f" {upper * (index + 1) / bins:g}: {count / len(values):.1%} of {len(values):,}"
                " tokens</title></rect>"
            )
    parts.append(f'<line class="grid" x1="0" x2="100%" y1="{height}" y2="{height}"/>')
    for tick, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        parts.append(
            f'<text class="axis" x="{100 * tick:g}%" y="{height + 17}"'
            f' text-anchor="{anchor}">{upper * tick:g}</text>'
        )
    return "".join(parts) + "</svg>"


def _round_up(share: float) -> float:
    """The smallest upper end of an axis that four equal steps of whole or half per cents reach."""
    for top in (0.02, 0.04, 0.08, 0.12, 0.16, 0.2, 0.24, 0.32, 0.4, 0.48, 0.6, 0.8, 1.0):
        if share <= top:
            return top
    return math.ceil(share)
