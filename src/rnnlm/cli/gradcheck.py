"""`rnnlm gradcheck`: holds every gradient against differences of losses."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import textwrap
from typing import TYPE_CHECKING

import click

from rnnlm.cli.options import Command, Value, json_option, option
from rnnlm.cli.progress import bar
from rnnlm.settings import Count, Natural, Positive

if TYPE_CHECKING:
    from rnnlm.gradcheck import Row

DIRECTIONS = 4


@click.command(
    cls=Command,
    short_help="Check gradients against finite differences.",
    epilog="""\b
    Example:
      rnnlm gradcheck
      rnnlm gradcheck --model model --directions 8
    """,
)
@option(
    "--model",
    "path",
    type=Value(str),
    metavar="PATH",
    show_default="small models of every kind",
    help="Check this model along random directions: its folder, or an .npz.",
)
@option(
    "--directions",
    type=Value(Count),
    show_default=str(DIRECTIONS),
    help="Random directions for each parameter, with --model.",
)
@option(
    "--tolerance",
    type=Value(Positive),
    default=1e-6,
    help="Largest relative error that passes.",
)
@option("--seed", type=Value(Natural), default=0, help="Random seed.")
@json_option()
@click.pass_context
def gradcheck(
    ctx: click.Context, path: str | None, directions: int | None, tolerance: float, seed: int, as_json: bool
) -> None:
    """Check that gradients are those of the losses, by central differences in float64.

    Without --model, every coordinate of every parameter of a small model of every kind.
    Exits with code 1 if any relative error is above the tolerance or cannot be computed.
    """
    if path is None and directions is not None:
        raise click.UsageError("--directions needs --model: of small models every coordinate is checked.")
    rows = _check_small(seed, tolerance) if path is None else _check_saved(path, directions, seed, tolerance)
    click.echo(
        _as_json(rows, tolerance)
        if as_json
        else _as_table(rows, tolerance, "coordinates" if path is None else "directions")
    )
    ctx.exit(0 if all(row.passed for row in rows) else 1)


def _check_small(seed: int, tolerance: float) -> list[Row]:
    from rnnlm.gradcheck import check_small_models, small_kinds

    with bar("checking", len(small_kinds()), " kinds") as progress:
        return check_small_models(seed, tolerance, lambda _kind: progress.update())


def _check_saved(path: str, directions: int | None, seed: int, tolerance: float) -> list[Row]:
    import numpy as np

    from rnnlm.checkpoint import load_model
    from rnnlm.gradcheck import check_model

    model = load_model(path).model
    with bar("checking", len(model.parameters) + 1, " parameters") as progress:
        return check_model(
            model,
            np.random.default_rng(seed),
            directions=directions or DIRECTIONS,
            tolerance=tolerance,
            progress=lambda _name: progress.update(),
        )


def _as_json(rows: list[Row], tolerance: float) -> str:
    """Give the rows as one object; numbers that are not finite, which JSON lacks, become null."""

    def finite(value: object) -> object:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    report = {
        "passed": all(row.passed for row in rows),
        "tolerance": tolerance,
        "worst_error": finite(max(row.worst_error for row in rows)),
        "rows": [{key: finite(value) for key, value in dataclasses.asdict(row).items()} for row in rows],
    }
    return json.dumps(report, indent=2, allow_nan=False)


def _as_table(rows: list[Row], tolerance: float, checked: str) -> str:
    """Line the rows up below their kinds, with both numbers where one fails, and end with the verdict."""
    cells = [("parameter", "shape", checked, "worst error", "")]
    cells += [
        (
            row.parameter,
            " × ".join(map(str, row.shape)),
            str(row.coordinates),
            f"{row.worst_error:.1e}",
            "ok" if row.passed else f"FAIL at {row.where}: {row.analytic:+.6e}, by differences {row.numeric:+.6e}",
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
    lines = [f"  {line}".rstrip() for line in lines]
    text = [lines[0]]
    for kind, group in itertools.groupby(zip(rows, lines[1:], strict=True), key=lambda pair: pair[0].kind):
        text += [textwrap.fill(kind, 80, subsequent_indent="  "), *(line for _, line in group)]
    passed, worst = sum(row.passed for row in rows), max(row.worst_error for row in rows)
    text.append(f"{passed} of {len(rows)} ok; worst relative error {worst:.1e}, tolerance {tolerance:g}")
    return "\n".join(text)
