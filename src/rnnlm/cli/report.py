"""`rnnlm report`: a page that says how a model came to be and where it errs."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rnnlm.checking import brief
from rnnlm.cli.options import Command, Value, model_option, option, refuse_inputs, threads_option
from rnnlm.cli.progress import bar, stage_bar

if TYPE_CHECKING:
    from rnnlm.reporting import Report


def _check_page(_ctx: click.Context, _parameter: click.Parameter, path: Path) -> Path:
    if path.suffix.lower() not in (".html", ".htm"):  # so that no text or model is written over
        raise click.UsageError(f"-o is {brief(str(path))}; it takes a file that ends in .html.")
    return path


@click.command(
    cls=Command,
    short_help="Write an HTML page on a model and where it errs.",
    epilog="""\b
    Example:
      rnnlm report --model model -o report.html
      rnnlm report other.txt --model model
    """,
)
@click.argument("files", metavar="[TEXT]...", nargs=-1, type=click.Path(allow_dash=True))
@model_option()
@option(
    "-o",
    "--output",
    type=Value(Path),
    default="report.html",
    callback=_check_page,
    help="Write the page into this file.",
)
@threads_option()
@option("--json", "as_json", is_flag=True, show_default=False, help="Print the figures as JSON, and write no page.")
def report(files: tuple[str, ...], model: str, output: Path, threads: int, as_json: bool) -> None:
    """Write an HTML page on a model: how it was trained, and where it errs on TEXT.

    TEXT is one or more texts, plain or gzip, or - for standard input; without it, the text that the model was
    validated on. The page has the learning curve, perplexity by word frequency and by position, the most costly words,
    a page of the text shaded by surprisal, sentences of the model, and how far back its errors reach.
    """
    import rnnlm
    from rnnlm import reporting
    from rnnlm.checkpoint import read_history
    from rnnlm.cli.info import blocks
    from rnnlm.page import check_jinja, write_page

    if not as_json:
        check_jinja()
        refuse_inputs(output, (*files, model), "-o")
    lm = rnnlm.load(model, threads=threads)
    history = read_history(model, lm.saved.origin)
    with ExitStack() as stack:

        def scoring(predictions: int) -> Callable[[int], object]:
            return stack.enter_context(bar("scoring", predictions, " words")).update

        found = reporting.report(lm, model, files, stage=stage_bar, scoring=scoring)
    if as_json:
        click.echo(json.dumps(_report(found), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        write_page(found, model, blocks(lm.saved), history, output)
        click.echo(f"Report: {output}")


def _report(found: Report) -> dict[str, Any]:
    """Return the figures of a report."""
    score = found.score.to_json()
    return {
        "text": found.text,
        "text_predictions": found.predictions,
        **score,
        "by_frequency": [part._asdict() for part in found.bands],
        "by_position": [part._asdict() for part in found.positions],
        "costly_words": [part._asdict() for part in found.costly],
        "surprising": [place._asdict() for place in found.surprising],
        "page": [list(pair) for pair in found.page],
        "samples": {str(temperature): sentences for temperature, sentences in found.samples.items()},
        "bptt_truncate": found.flow.advice,
        "command": " ".join(found.command),
        "versions": found.versions,
    }
