"""A page is one file: charts draw without a network, and text stays text."""

from pathlib import Path

import plotly.graph_objects as go
import pytest

from manyhead.report.page import Cell, Page
from tests.browser import open_page


def sample() -> Page:
    page = Page("A <b>title</b>", "with a </script> in it")
    page.section("First", "lead")
    page.headline([("IC", "0.02", "± 0.01")])
    page.table(["what", "number"], [["<i>a</i>", Cell("1", "good")]], caption="a table")
    page.chart(go.Figure(go.Scatter(x=[1, 2], y=[3, 4], name="</script><script>throw 1</script>")), "a chart")
    page.points(["one", "two"])
    page.note("careful", "warn")
    return page


def test_a_page_fetches_nothing_and_escapes_text() -> None:
    text = sample().html()
    assert "A &lt;b&gt;title&lt;/b&gt;" in text
    assert "<script>throw" not in text
    assert "src=" not in text.split("<script>")[0]


@pytest.mark.browser
def test_every_chart_is_drawn_without_console_errors(tmp_path: Path) -> None:
    seen = open_page(sample().save(tmp_path / "page.html"))
    assert seen.errors == []
    assert (seen.charts, seen.drawn) == (1, 1)
    assert "<i>a</i>" in seen.text
