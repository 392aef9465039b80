"""The page that `rnnlm report` writes: the only file that knows jinja2, an optional extra."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rnnlm.charts import LINES, Line, line_chart
from rnnlm.curve import epochs_done
from rnnlm.errors import ModelError, SettingsError
from rnnlm.files import replacing
from rnnlm.shading import DARK, EDGES, LIGHT, clipped, shade
from rnnlm.sources import printable

if TYPE_CHECKING:
    from rnnlm.gradflow import Flow
    from rnnlm.reporting import Report
    from rnnlm.training import Record

LEAST = 1e-4  # of an error's norm at lag 0: what is smaller is not drawn
LONGEST = 10_000  # characters of a sentence, a command or a list of files
EVALUATIONS = 40  # in the table
LAGS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # in the table


def check_jinja() -> None:
    """Raise SettingsError where no page can be made, as jinja2 is missing."""
    try:
        import jinja2  # noqa: F401
    except ImportError:
        raise SettingsError("rnnlm report needs jinja2, which is not installed; pip install jinja2") from None


def write_page(
    report: Report, name: str, blocks: dict[str, dict[str, str]], history: Sequence[Record], path: Path
) -> None:
    """Write a report as one page that needs no other file and no script.

    Arguments:
        report: its figures.
        name: of the model.
        blocks: what the model is, by subject.
        history: its evaluations, perhaps none.
        path: of the file.

    Whatever a text, a path or a word holds is shown as text. Raises SettingsError as `check_jinja`, ModelError where
    the file cannot be written.
    """
    best = min(history, key=lambda record: record.valid_perplexity, default=None)
    page = _template().render(
        report=report,
        name=name,
        blocks=blocks,
        history=history,
        best=best,
        evaluations=_some(history, best),
        curve=_curve(history),
        reach=_reach(report.flow),
        lags=[lag for lag in LAGS if lag < len(report.flow.pairs) and report.flow.pairs[lag]],
        shades=list(zip(LIGHT, DARK, strict=True)),
        edges=EDGES,
    )
    with replacing(path, ModelError, "make room or name another file with -o") as file:
        file.write(page.encode("utf-8", "replace"))


def _template() -> Any:
    """Return the template, which escapes all that it shows."""
    check_jinja()
    import jinja2

    house = jinja2.Environment(
        loader=jinja2.PackageLoader("rnnlm"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value[:LONGEST]) if type(value) is str else value,
    )
    house.filters |= {"number": _number, "share": "{:.1%}".format, "shade": shade, "word": clipped}
    return house.get_template("report.html")


def _some(history: Sequence[Record], best: Record | None) -> list[tuple[float, Record]]:
    """Return about EVALUATIONS evaluations, the best and the last among them, and how many epochs were done at each."""
    every = math.ceil(len(history) / EVALUATIONS)
    all_of_them = zip(epochs_done(history) if history else [], history, strict=True)
    return [pair for n, pair in enumerate(all_of_them, 1) if (len(history) - n) % every == 0 or pair[1] is best]


def _curve(history: Sequence[Record]) -> Any:
    """Draw the perplexities of a run by epoch; None where there are none."""
    from markupsafe import Markup

    if not history:
        return None
    at = epochs_done(history)
    validation = [(x, record.valid_perplexity) for x, record in zip(at, history, strict=True)]
    training = [(x, record.train_perplexity) for x, record in zip(at, history, strict=True) if record.train_perplexity]
    lines = [Line("validation", validation), *([Line("training", training)] if training else [])]
    best = min(validation, key=lambda point: point[1])
    title = f"Perplexity by epoch; the best in validation is {best[1]:.2f} after epoch {best[0]:.4g}"
    return Markup(line_chart(title, lines, "epoch", "perplexity", best))  # it escapes what it is given


def _reach(flow: Flow) -> Any:
    """Draw the norm of delta by lag, of each layer's share at lag 0."""
    from markupsafe import Markup

    lines = []
    for layer in flow.layers:
        points = [(lag, float(share)) for lag, share in enumerate(layer.of_first[0]) if share > LEAST]
        lines.append(Line(f"layer {layer.number}", points or [(0, 1.0)]))
    title = "Mean norm of delta_t(t - lag) by lag, as a share of that at lag 0"
    return Markup(line_chart(title, lines[-LINES:], "lag, steps back from the error", "share of lag 0", None))


def _number(value: float | None, digits: int = 2) -> str:
    """Write a figure; None and what is no finite number are "none"."""
    if value is None or value != value or value in (float("inf"), float("-inf")):
        return "none"
    return f"{value:,.{digits}f}" if value < 1e7 else f"{value:.2e}"
