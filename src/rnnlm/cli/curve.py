"""`rnnlm curve`: the learning curves of runs, side by side."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rnnlm.cli.options import Command, Value, check_picture, json_option, option, refuse_inputs

if TYPE_CHECKING:
    from rnnlm.training import Record


@click.command(
    cls=Command,
    short_help="Compare the learning curves of models.",
    epilog="""\b
    Example:
      rnnlm curve elman lstm -o curves.svg
      rnnlm curve elman lstm -o curves.svg --by seconds
    """,
)
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=click.Path())
@option("-o", "--output", type=Value(Path), callback=check_picture, help="Draw them into this SVG, PNG or PDF file.")
@option("--by", type=click.Choice(["epoch", "seconds"]), show_default="epoch", help="What stands at the axis below.")
@json_option()
def curve(models: tuple[str, ...], output: Path | None, by: str | None, as_json: bool) -> None:
    """Print what each MODEL reached, and when: a model's folder, or an .npz.

    Perplexities are those in validation; in the picture, dashed lines are those in training.
    """
    from rnnlm.checkpoint import load_model, read_history
    from rnnlm.curve import draw_runs
    from rnnlm.errors import ModelError
    from rnnlm.pictures import check_matplotlib

    if by is not None and output is None:
        raise click.UsageError("--by is of the picture; give -o too, or leave it out.")
    if output is not None:
        check_matplotlib("-o")
        refuse_inputs(output, models, "-o")
    runs: dict[str, list[Record]] = {}
    for model in dict.fromkeys(models):
        origin = load_model(model).origin
        runs[model] = read_history(model, origin)
        if not runs[model]:
            trained = any(origin.keys)  # an imported model is not
            why = "has not been evaluated yet; go on with its training, or" if trained else "rnnlm has not trained it;"
            raise ModelError(f"{model}: {why} leave it out")
    if output is not None:
        draw_runs(runs, output, "seconds" if by == "seconds" else "epoch")
    if as_json:
        report = {name: [dataclasses.asdict(record) for record in history] for name, history in runs.items()}
        click.echo(json.dumps(report, indent=2))
    else:
        click.echo(_table(runs))


def _table(runs: dict[str, list[Record]]) -> str:
    """Line up the best evaluation of each run."""
    from rnnlm.sources import printable

    lines = [f"{'model':<28}{'best':>10}{'excl. unknown':>15}{'epoch':>7}{'seconds':>9}{'words/s':>11}"]
    for name, history in runs.items():
        best = min(history, key=lambda record: record.valid_perplexity)
        known = best.valid_perplexity_excluding_unknown
        shown = printable(name)
        lines.append(
            f"{shown if len(shown) < 28 else f'...{shown[-24:]}':<28}{best.valid_perplexity:>10.2f}"
            f"{'none' if known is None else f'{known:.2f}':>15}{best.epoch:>7}{best.seconds:>9,.0f}"
            f"{best.words_per_second:>11,}"
        )
    return "\n".join(lines)
