"""The HTML pages: self-contained, escaped, well formed, and true to the numbers they are given."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from autodeco_ext.evaluation.pass_at_k import Estimate
from autodeco_ext.report.chart import Bar, histogram, interval_chart
from autodeco_ext.report.page import definitions, page, table
from autodeco_ext.report.tokens import legend, temperature_class, token_spans, top_p_class
from autodeco_ext.report.trace_page import trace_page

VOID = {"meta", "br"}


class Checker(HTMLParser):
    """Collects text and complains about tags that do not match."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(document)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def record(
    text: str, temperature: float = 0.5, top_p: float = 0.9, kept: int = 3, token_id: int = 5
) -> dict:
    return {
        "text": text,
        "token_id": token_id,
        "temperature": temperature,
        "top_p": top_p,
        "kept": kept,
        "logprob": -0.6931472,
        "entropy": 1.25,
    }


def test_a_trace_page_needs_nothing_from_outside() -> None:
    document = trace_page("Why?", [record(" Because"), record("\n")], [("seed", "1")])
    checker = Checker(document)
    assert not {"src", "href", "xlink:href"} & {name for name, _ in checker.attributes}
    assert not re.search(r"https?:|@import|url\(", document)


def test_texts_from_models_and_people_cannot_become_markup() -> None:
    evil = "<script>alert('x')</script>&amp;"
    document = trace_page(evil, [record(evil)], [(evil, evil)])
    assert document.count("<script>") == 1  # our own
    said = "".join(Checker(document).text)
    assert said.count(evil) == 4


def test_every_token_shows_its_numbers() -> None:
    spans = token_spans([record(" one", 0.512, 0.913, 1), record("two", 1.3, 1.0, 12345)])
    titles = [value for name, value in Checker(spans).attributes if name == "title"]
    assert "T 0.512   P 0.913" in titles[0] and "kept 1 token\n" in titles[0]
    assert "kept 12,345 tokens" in titles[1] and "T 1.300   P 1.000" in titles[1]
    assert all("probability 50.0 %  (log -0.693)" in title for title in titles)
    assert all("entropy 1.250 nats" in title for title in titles)


def test_tokens_join_to_the_generated_text() -> None:
    texts = [" 7", " + ", "<b>", "\n", "end"]
    said = "".join(Checker(token_spans([record(text) for text in texts])).text)
    assert said.replace("↵", "") == "".join(texts)


def test_special_tokens_are_grey_and_others_are_not() -> None:
    end = record("<|im_end|>", token_id=2)
    assert "<i>&lt;|im_end|&gt;</i>" in token_spans([record("a"), end], special_ids=[2])
    assert "<i>" not in token_spans([record("a"), end], special_ids=[3])
    assert "<i>&lt;" in trace_page("Why?", [end], [], special_ids=[2])


def test_tokens_without_text_are_left_out() -> None:
    assert token_spans([record(""), record("é")]).count("<b") == 1


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [(0.0, "c20"), (0.5, "c10"), (0.98, ""), (1.0, ""), (1.05, "h1"), (2.0, "h20"), (9.0, "h20")],
)
def test_colour_follows_temperature(temperature: float, expected: str) -> None:
    assert temperature_class(temperature) == expected


def test_the_underline_grows_as_more_is_cut() -> None:
    widths = [top_p_class(value) for value in (1.0, 0.999, 0.9, 0.6, 0.3, 0.0)]
    assert widths[0] == "" and widths[1] == "u1" and widths[-1] == "u5"
    assert widths == sorted(widths)


def test_values_that_are_not_finite_have_no_colour() -> None:
    assert temperature_class(float("nan")) == "" and top_p_class(float("nan")) == ""


def test_the_legend_uses_the_classes_of_the_text() -> None:
    document = legend()
    Checker(document)
    assert 'class="c20"' in document and 'class="h20"' in document and 'class="u5"' in document


def test_the_chart_shows_every_bar_at_its_place() -> None:
    bars = [
        Bar("a < b", Estimate(0.1, 0.05, 0.2)),
        Bar("ours", Estimate(0.2, 0.1, 0.4), highlighted=True),
    ]
    document = interval_chart(bars, "two bars", max(bar.estimate.high for bar in bars))
    checker = Checker(document)
    assert "a < b" in checker.text and "10.0 %" in checker.text and "20.0 %" in checker.text
    low, high = (
        [
            float(value.rstrip("%"))
            for value in re.findall(r'bar" x1="([\d.]+)%" x2="([\d.]+)%"', document)[row * 3]
        ]
        for row in (0, 1)
    )
    # Same axis for both: 0.05 .. 0.2 and 0.1 .. 0.4 differ by a factor of two.
    assert (high[1] - high[0]) == pytest.approx(2 * (low[1] - low[0]), abs=0.05)
    assert all(0 <= float(value) <= 100 for value in re.findall(r'[xc]x?\d?="([\d.]+)%"', document))


@pytest.mark.parametrize("high", [0.001, 0.03, 0.5, 1.0])
def test_the_axis_covers_the_highest_interval(high: float) -> None:
    document = interval_chart([Bar("x", Estimate(high / 2, 0.0, high))], "one bar", high)
    right = float(re.findall(r'bar" x1="[\d.]+%" x2="([\d.]+)%"', document)[0])
    ticks = [float(value) for value in re.findall(r'grid" x1="([\d.]+)%"', document)]
    assert right <= max(ticks) + 1e-9


def test_a_histogram_counts_every_value_once() -> None:
    document = histogram([0.0, 0.5, 0.5, 2.0], 2.0, "values", bins=4)
    Checker(document)
    shares = [float(value) for value in re.findall(r"([\d.]+)% of 4 tokens", document)]
    assert sorted(shares) == [25.0, 25.0, 50.0]


def test_tables_and_definitions_are_well_formed() -> None:
    body = table(["a", "b"], [["1", "2"], ["3", "4"]], highlighted=1) + definitions([("k", "v<")])
    checker = Checker(page("title <", body))
    assert "v<" in checker.text and "title <" in checker.text
    assert [value for name, value in checker.attributes if value == "ours"] == ["ours"]
