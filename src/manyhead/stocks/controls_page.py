"""The report's section on controls: the canary's verdict at every fold, and the placebo's distribution."""

import numpy as np
import plotly.graph_objects as go
import polars as pl

from manyhead.report.page import COLOURS, Cell, Page
from manyhead.stocks import charts, words
from manyhead.stocks.controls import canary_verdicts, placebo_of
from manyhead.stocks.folder import RunFolder
from manyhead.stocks.result import Result


def controls_section(page: Page, result: Result) -> None:
    """Show the controls that were run, if any."""
    place = RunFolder(result.folder)
    verdicts, dealt = canary_verdicts(place), placebo_of(place)
    if not verdicts and dealt is None:
        return
    page.section(
        "Does it see the future, or find what is not there?",
        "Two controls: one changes everything after a decision and asks whether the decision changes; the "
        "other takes all skill out of the labels and asks whether any is found.",
    )
    if verdicts:
        _canary(page, verdicts)
    if dealt is not None:
        _placebo(page, result, dealt)


def _canary(page: Page, verdicts: list[dict[str, object]]) -> None:
    leaky = [verdict for verdict in verdicts if verdict["leaks"]]
    if leaky:
        page.note(
            f"The future is read: in {len(leaky)} of {len(verdicts)} splits something that a decision may "
            "use changed when later prices did. No figure of this report can be trusted.",
            "warn",
        )
    else:
        page.note(
            f"No look-ahead in {len(verdicts)} of {len(verdicts)} splits: universe, factors, scaling, graph, "
            "scores and trades up to the decision stayed the same to the last bit."
        )
    rows: list[list[str | Cell]] = []
    for verdict in verdicts:
        found = verdict["leaks"]
        assert isinstance(found, list)
        text = Cell("nothing changed", "good")
        if found:
            first = found[0]
            text = Cell(
                f"{first['stage']}: {first['what']} on {first['changed']} ({first['replacement']})", "bad"
            )
        replaced = verdict["replacements"]
        assert isinstance(replaced, list)
        rows.append([str(verdict["split"]), str(verdict["decision"]), ", ".join(replaced), text])
    page.table(
        ["split", "decision", "later prices replaced by", "first change up to the decision"],
        rows,
        "The leak canary: every price after the decision day is replaced and the pipeline computed again.",
    )


def _placebo(page: Page, result: Result, dealt: dict[str, object]) -> None:
    found = np.asarray(dealt["ic"], np.float64)
    model = str(dealt["model"])
    figure = go.Figure(go.Histogram(x=charts.rounded(found), marker_color=COLOURS[6], name="placebo"))
    real = {}
    for colour, name in zip(COLOURS, dict.fromkeys([result.models[0].model, model]), strict=False):
        rows = result.skill.filter((pl.col("model") == name) & (pl.col("split") == dealt["split"]))
        if rows.height:
            real[name] = float(np.mean(rows["ic"].to_numpy()))
            figure.add_vline(
                x=real[name],
                line={"color": colour, "width": 2, "dash": "dash"},
                annotation_text=words.name(name),
            )
    figure.update_xaxes(title="mean daily IC on test days")
    figure.update_yaxes(title="placebo runs")
    page.chart(
        figure,
        f"{len(found)} runs of {words.name(model)} on labels dealt out anew within each day of split "
        f"{dealt['split']}: what luck alone gives. Dashed: the true labels.",
        320,
    )
    above = {name: float((found >= ic).mean()) for name, ic in real.items()}
    uniform = dealt["uniformity"]
    assert isinstance(uniform, float)
    page.points(
        [
            f"Mean of the placebo: {found.mean():+.5f} (standard error {dealt['error']:.5f}); one run strays "
            f"by {found.std(ddof=1):.4f}.",
            f"Are its p-values uniform, as they must be? Kolmogorov-Smirnov p = {uniform:.3f}.",
            *(
                f"{words.name(name)} has {real[name]:+.4f} there: {100 * share:.0f} % of the placebo runs do "
                "as well."
                for name, share in above.items()
            ),
        ]
    )
