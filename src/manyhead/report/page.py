"""A page: headings, words, tables and plotly charts in one HTML file that needs no network.

plotly's JavaScript is embedded once and charts are drawn from JSON. Colours follow the
reader's light or dark setting, and the page prints.
"""

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from manyhead.files import write_text

# series colours that stay apart for colour-blind readers (Okabe and Ito), strongest first
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8C8C8C", "#B8A800")


@dataclass(frozen=True)
class Cell:
    """A table cell with its own look: 'good', 'bad', 'strong' or 'quiet'."""

    text: str
    look: str = ""


@dataclass
class Page:
    """A self-contained HTML page, built from top to bottom.

    Args:
        title: heading and browser title.
        subtitle: one line under it.
    """

    title: str
    subtitle: str = ""
    _parts: list[dict[str, Any]] = field(default_factory=list)
    _charts: list[str] = field(default_factory=list)

    def section(self, heading: str, lead: str = "") -> None:
        """Begin a section, listed in the page's contents; `lead` is plain text under its heading."""
        self._parts.append(
            {"kind": "section", "text": heading, "lead": lead, "anchor": f"s{len(self._parts)}"}
        )

    def words(self, text: str) -> None:
        """Add a paragraph of plain text."""
        self._parts.append({"kind": "words", "text": text})

    def points(self, items: Sequence[str]) -> None:
        """Add a list of plain-text points."""
        self._parts.append({"kind": "points", "entries": list(items)})

    def note(self, text: str, look: str = "info") -> None:
        """Add a framed remark; `look` is 'info', 'warn' or 'good'."""
        self._parts.append({"kind": "note", "text": text, "look": look})

    def headline(self, figures: Sequence[tuple[str, str, str]]) -> None:
        """Add a row of large figures: (label, value, remark)."""
        self._parts.append({"kind": "headline", "figures": list(figures)})

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[str | Cell]], caption: str = "") -> None:
        """Add a table; the first column is text, the others are aligned as numbers."""
        cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
        looks = [cell.look for cell in cells[0]] if cells else []
        heads = [  # above text stands its heading, above numbers theirs
            Cell(heading, "text" if place < len(looks) and looks[place] == "text" else "")
            for place, heading in enumerate(headings)
        ]
        self._parts.append({"kind": "table", "headings": heads, "rows": cells, "caption": caption})

    def chart(self, figure: go.Figure, caption: str = "", height: int = 360) -> None:
        """Add a plotly figure; `caption` says what to see in it."""
        titled = any(note.yref == "paper" for note in figure.layout.annotations)
        figure.update_layout(
            template="none",
            height=height,
            margin={"l": 56, "r": 18, "t": 66 if titled else 38, "b": 44},
            paper_bgcolor="rgba(0,0,0,0)",
            plot_bgcolor="rgba(0,0,0,0)",
            colorway=list(COLOURS),
            font={"family": "inherit", "size": 13},
            hoverlabel={"font": {"family": "inherit"}},
            # above the plot, and above the titles of its parts
            legend={"orientation": "h", "yref": "container", "y": 0.995, "yanchor": "top", "x": 0},
        )
        self._charts.append(figure.to_json())
        self._parts.append(
            {"kind": "chart", "id": f"chart{len(self._charts) - 1}", "caption": caption, "height": height}
        )

    def html(self) -> str:
        """Return the page as one HTML document."""
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
        )
        # '<' is escaped so that no text inside a chart can end the script element that holds it
        charts = "[" + ",".join(self._charts).replace("<", "\\u003c") + "]"
        json.loads(charts)
        return environment.get_template("page.html").render(
            title=self.title,
            subtitle=self.subtitle,
            parts=self._parts,
            charts=charts,
            plotly=get_plotlyjs(),
        )

    def save(self, path: str | Path) -> Path:
        """Write the page, whole or not at all."""
        write_text(path, self.html())
        return Path(path)


def escape(text: str) -> str:
    """Escape text for plotly labels, which read a subset of HTML."""
    return html.escape(text, quote=False)
