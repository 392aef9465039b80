"""`rnnlm mix`: the weights with which models predict a text best together."""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from rnnlm.cli.options import Command, Value, given, json_option, option, threads_option
from rnnlm.cli.progress import figure, say, stage_bar
from rnnlm.errors import counted
from rnnlm.settings import Precision, Share, TextSettings

if TYPE_CHECKING:
    from rnnlm.mixing import Iteration, Mixed
    from rnnlm.scoring import Score

READING, WEIGHTS, RESULT = "Text and models", "Weights", "Result"
WIDTH = 80  # columns of a line
NAME = 36  # columns of a model's name in the table


class Weights(click.ParamType):  # type: ignore[type-arg]  # generic in some versions of click only
    """Numbers separated by commas or blanks."""

    name = "weights"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[float]:
        """Return the numbers, or fail."""
        parts = [part for part in re.split("[, ]", value) if part]
        return [Value(Share).convert(part, param, ctx) for part in parts]


@click.command(
    cls=Command,
    short_help="Interpolate models, and find their weights.",
    epilog="""\b
    Example:
      rnnlm mix valid.txt model 5gram.arpa.gz -o mix.toml
    """,
)
@click.argument("text", metavar="TEXT", type=click.Path(allow_dash=True))
@click.argument("models", metavar="[MODEL]...", nargs=-1, type=click.Path())
@option(
    "--stream",
    "streams",
    multiple=True,
    type=click.Path(),
    metavar="FILE",
    group=READING,
    help="Mix in what another program gives to each word of TEXT, as Mikolov's -lm-prob, SRILM's -debug 2 and KenLM's "
    "query write it; give it again for several.",
)
@option(
    "--pretokenized",
    is_flag=True,
    show_default=False,
    group=READING,
    help="Read one sentence per line, words separated by spaces.",
)
@option(
    "--lines",
    is_flag=True,
    show_default=False,
    group=READING,
    help="Read one sentence per line, and tokenize it into words.",
)
@option(
    "--encoding",
    type=Value(str),
    group=READING,
    show_default="that of our models' texts, or utf-8",
    help="Encoding of TEXT.",
)
@threads_option(READING)
@option(
    "--weights",
    type=Weights(),
    metavar="X,X...",
    group=WEIGHTS,
    show_default="the best for TEXT",
    help="Take these, of the models and then of the streams.",
)
@option(
    "--precision",
    type=Value(Precision),
    default=1e-6,
    group=WEIGHTS,
    help="Stop when no weight moves further in an iteration.",
)
@option(
    "--oov",
    type=click.Choice(["share", "mikolov"]),
    default="share",
    group=WEIGHTS,
    help="What a model gives to a word that it lacks and another has: its share of <unk>; or, as Mikolov's tool, "
    "nothing, where the first model is taken for the network.",
)
@option(
    "-o",
    "--output",
    type=Value(str),
    metavar="MIX.toml",
    group=RESULT,
    help="Write the mixture to this file, which is a model too.",
)
@option(
    "--format",
    "form",
    type=click.Choice(["table", "srilm"]),
    default="table",
    group=RESULT,
    help="How to print the result; srilm: as compute-best-mix does.",
)
@json_option(RESULT)
@click.pass_context
def mix(
    ctx: click.Context,
    /,
    text: str,
    models: tuple[str, ...],
    streams: tuple[str, ...],
    as_json: bool,
    form: str,
    **options: Any,
) -> None:
    """Find the weights with which MODEL... predict TEXT best together.

    A MODEL is a folder or an .npz of ours, an ARPA file, plain or gzip, or a binary of KenLM. TEXT is cut into words as
    the training texts of our models were, else a sentence is a line and words lie between blanks; each sentence is read
    by itself. Perplexities are over all words and the end of each sentence, once with the words that no model has and
    once without.
    """
    import rnnlm
    from rnnlm import mixing
    from rnnlm.sources import shown

    if options["weights"] is not None and "precision" in given(ctx):
        raise click.UsageError("--precision is of weights that are found, and --weights gives them; leave one out.")
    if as_json and form != "table":
        raise click.UsageError("--json is a format of its own; leave out --format.")
    if not models and not streams:
        raise click.UsageError("There is nothing to mix; name a MODEL, or a stream with --stream.")
    try:
        TextSettings(options["pretokenized"], options["lines"])
        told: Callable[[Iteration], object] = _srilm_iteration if form == "srilm" else lambda _: None
        found = mixing.mix(text, models, streams, stage=stage_bar, told=told, **options)
    except rnnlm.SettingsError as error:
        raise click.UsageError(f"{error}.") from None
    if as_json:
        click.echo(json.dumps(_report(found), indent=2, ensure_ascii=False))
    else:
        click.echo(_srilm(found) if form == "srilm" else _table(found))
    if options["output"] is not None:
        say(f"Mixture: {shown(options['output'])}")


def _srilm_iteration(iteration: Iteration) -> None:
    weights = " ".join(f"{weight:.6g}" for weight in iteration.weights)
    click.echo(f"iteration {iteration.number}, lambda = ({weights}), ppl = {iteration.perplexity:.6g}", err=True)


def _srilm(found: Mixed) -> str:
    """Return the last lines of compute-best-mix."""
    sums = [sum(found.weights[: number + 1]) or 1 for number in range(len(found.weights))]
    pairwise = " ".join(f"{weight / total:.6g}" for weight, total in zip(found.weights, sums, strict=True))
    weights = " ".join(f"{weight:.6g}" for weight in found.weights)
    return f"{found.counted} non-oov words, best lambda ({weights})\npairwise cumulative lambda ({pairwise})"


def _report(found: Mixed) -> dict[str, Any]:
    """Return what --json prints."""
    kept = ("perplexity", "perplexity_excluding_unknown", "bits_per_prediction")
    models = [
        {"model": name, "weight": weight, **{key: score.to_json()[key] for key in kept}}
        for name, weight, score in zip(found.names, found.weights, found.scores, strict=True)
    ]
    return {"models": models, **found.score.to_json(), "left_out": found.left_out, "iterations": found.iterations}


def _table(found: Mixed) -> str:
    """Line the figures up: a row for each model, the mixture, and what was counted."""
    from rnnlm.sources import printable

    def row(name: str, weight: str, score: Score) -> str:
        name = name if len(name) <= NAME else f"...{name[3 - NAME :]}"
        known = score.perplexity_excluding_unknown
        return f"{printable(name):<{NAME}}{weight:>8}{figure(score.perplexity):>14}{figure(known):>16}"

    rows = [f"{'model':<{NAME}}{'weight':>8}{'perplexity':>14}{'excl. unknown':>16}"]
    rows += [row(*each) for each in zip(found.names, (f"{w:.4f}" for w in found.weights), found.scores, strict=True)]
    if len(found.names) > 1:
        rows.append(row("mixture", "", found.score))
    score = found.score
    counts = f"{score.sentences:,} sentences, {score.words:,} words, {score.unknown:,} unknown"
    if found.left_out:
        counts = f"{counts} to some, {found.left_out:,} left out, as all lack them"
    steps = f"; {counted(found.iterations, 'iteration')}" if found.iterations and len(found.names) > 1 else ""
    notes = [
        f"{printable(name)} lacks {counted(lacking, 'word')} of the others, and shares its <unk> with them: an unknown "
        f"word costs it {math.log2(lacking + 1):.1f} bits more than in rnnlm evaluate"
        for name, lacking in zip(found.names, found.lacking, strict=False)
        if lacking
    ]
    notes += [
        f"{printable(name)} carries its state in rnnlm evaluate; here it reads each sentence by itself"
        for name in dict.fromkeys(found.carried)
    ]
    return "\n".join([*rows, *(textwrap.fill(note, WIDTH) for note in (f"{counts}{steps}", *notes))])
