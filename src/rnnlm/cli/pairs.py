"""`rnnlm pairs`: how often a model prefers the good sentence of a minimal pair."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from rnnlm.cli.options import Command, Value, json_option, model_option, option, threads_option
from rnnlm.cli.progress import bar, warn
from rnnlm.errors import SettingsError, TextError

if TYPE_CHECKING:
    from rnnlm.pairs import Judgement, Result, Tally


@click.command(
    cls=Command,
    short_help="Print the accuracy on minimal pairs.",
    epilog="""\b
    Example:
      printf 'The cats sleep .\\tThe cats sleeps .\\n' | rnnlm pairs -
    """,
)
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(allow_dash=True))
@model_option()
@option(
    "--by",
    type=Value(str),
    multiple=True,
    metavar="COLUMN",
    show_default="UID, linguistics_term; or the first column left",
    help="Group by this column: its name in a header or in JSON, or its number.",
)
@option("--pretokenized", is_flag=True, show_default=False, help="Words are separated by spaces.")
@option("--encoding", type=Value(str), show_default="that of the training text", help="Encoding of the files.")
@option("--scores", is_flag=True, show_default=False, help="Print a row for each pair: natural log-probabilities.")
@threads_option()
@json_option()
def pairs(
    files: tuple[str, ...],
    model: str,
    by: tuple[str, ...],
    pretokenized: bool,
    encoding: str | None,
    scores: bool,
    threads: int,
    as_json: bool,
) -> None:
    """Print how often the model finds the good sentence likelier than the bad.

    Files are plain or gzip. Each line has a pair, with tabs between columns: the good sentence, the bad one, and any
    others; or a sentence with the gap ***mask***, the good word and the bad one; or BLiMP's JSON. A tie counts half.
    Each sentence is read by itself, a word that the model does not know as <unk>; pairs with such words are told apart.
    """
    from rnnlm.checkpoint import load_model
    from rnnlm.pairs import Result, judged, read_pairs
    from rnnlm.run import working
    from rnnlm.sources import spooled

    saved, result, columns = load_model(model), Result(), None
    own = saved.tokenizer.settings.encoding if encoding is None else encoding
    try:
        with spooled(files) as sources, working(threads) as work, bar("scoring", None, " pairs") as progress:
            found = read_pairs(sources, saved.tokenizer, by, pretokenized, own, threads)
            for judgement in judged(found, saved, work):
                result.add(judgement)
                progress.update()
                if scores:
                    columns = _write(judgement, as_json, columns)
    except SettingsError as error:
        raise click.UsageError(f"{error}.") from None
    if not scores:
        click.echo(json.dumps(result.to_json(), indent=2, ensure_ascii=False) if as_json else _table(result))
    _warn(result)


def _warn(result: Result) -> None:
    """Say what makes figures worth little."""
    for name in sorted(result.ungrouped):
        warn(f"{_short(name, 40)} has too many different values to group by; name another column with --by.")
    if result.unknown.pairs > result.all.pairs / 2:
        share = result.unknown.pairs / result.all.pairs
        warn(f"{share:.0%} of the pairs have words that the model does not know; see rnnlm info.")


def _write(judgement: Judgement, as_json: bool, before: list[str] | None) -> list[str]:
    """Print the row of a pair, and before the first what its columns are; returns the groups of the last ones."""
    from rnnlm.sources import printable, shown

    row, pair = judgement.to_json(), judgement.pair
    if as_json:
        click.echo(json.dumps(row, ensure_ascii=False))
        return []
    groups = row.pop("groups")
    if before is None:
        click.echo("\t".join([*row, *map(printable, groups)]))
    elif before != [*groups]:
        there = f"{shown(pair.file)}, line {pair.line}: has other groups than the pairs before"
        raise TextError(f"{there}; give such files one at a time, or add --json")
    place = printable(pair.file), pair.line
    figures = (*place, f"{judgement.good:.6f}", f"{judgement.bad:.6f}", f"{judgement.correct:g}")
    click.echo("\t".join([*map(str, figures), str(int(judgement.unknown)), *map(printable, groups.values())]))
    return [*groups]


def _table(result: Result) -> str:
    """Line the figures up: all pairs, those with and without unknown words, then each group."""
    lines = [f"{'':<42}{'pairs':>9}{'ties':>7}{'accuracy':>10}{'std.err':>8}"]
    lines += _rows({"all": result.all, "  without unknown words": result.known, "  with unknown words": result.unknown})
    for name, values in result.groups.items():
        if not values:
            continue
        lines += [_short(name, 76), *_rows({f"  {value}": tally for value, tally in sorted(values.items())})]
    return "\n".join(lines)


def _rows(tallies: dict[str, Tally]) -> Iterator[str]:
    for name, tally in tallies.items():
        figures = f"{tally.accuracy:>10.2%}{tally.standard_error:>8.2%}" if tally.pairs else f"{'none':>10}"
        yield f"{_short(name, 42):<42}{tally.pairs:>9,}{tally.ties:>7,}{figures}"


def _short(name: str, width: int) -> str:
    """Return a name of a file's as a table has room for it."""
    from rnnlm.sources import printable

    return printable(name if len(name) <= width else f"{name[: width - 3]}...")
