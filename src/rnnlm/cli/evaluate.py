"""`rnnlm evaluate`: the perplexity of a text."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from rnnlm.cli.adaptation import adaptation_options, adaptation_settings, tuned
from rnnlm.cli.options import ANY_MODEL, Command, Value, json_option, model_option, option, threads_option
from rnnlm.cli.progress import bar, figure, stage_bar, warn, warn_of_unknown
from rnnlm.settings import TextSettings

if TYPE_CHECKING:
    from rnnlm.scoring import Score


@click.command(
    cls=Command,
    short_help="Print the perplexity of a text.",
    epilog="""\b
    Example:
      rnnlm evaluate test.txt --cache 500 --tune-on valid.txt
      echo "This is a sentence." | rnnlm evaluate -
    """,
)
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(allow_dash=True))
@model_option(help=ANY_MODEL)
@option(
    "--pretokenized", is_flag=True, show_default=False, help="Read one sentence per line, words separated by spaces."
)
@option("--lines", is_flag=True, show_default=False, help="Read one sentence per line, and tokenize it into words.")
@option(
    "--carry-state/--no-carry-state",
    default=None,
    show_default="as in training; no for a mixture",
    help="Carry the hidden state from sentence to sentence.",
)
@option("--encoding", type=Value(str), show_default="that of the training text", help="Encoding of the files.")
@threads_option()
@json_option()
@adaptation_options("text", "sentence")
def evaluate(files: tuple[str, ...], model: str, threads: int, as_json: bool, **options: Any) -> None:
    """Print the perplexity of FILE...: texts, plain or gzip, or - for standard input.

    The files are cut into sentences and words as the training text was. Perplexity is over all words and the end of
    each sentence, once with unknown words, as <unk>, and once without. With --no-carry-state each sentence is scored
    by itself. A model that adapts reads the text in order; it scores each word before it learns of it.
    """
    import rnnlm
    from rnnlm.mixture import open_scorer

    cut = {name: options[name] for name in ("pretokenized", "lines", "carry_state", "encoding")}
    try:
        TextSettings(cut["pretokenized"], cut["lines"])
    except rnnlm.RnnlmError as error:
        raise click.UsageError(f"{error}.") from None
    settings = adaptation_settings(options, files)
    lm = open_scorer(model, threads, stage_bar)
    settings = tuned(lm, settings, options["tune_on"], **cut)
    with ExitStack() as stack:

        def scoring(predictions: int) -> Callable[[int], object]:
            return stack.enter_context(bar("scoring", predictions, " words")).update

        score = lm.perplexity(
            *files, stage=stage_bar, scoring=scoring, **cut, **(asdict(settings) if settings.active else {})
        )
    most = warn_of_unknown(score.unknown, score.words, "is the text")
    if score.unknown and not most and isinstance(lm, rnnlm.Model) and not lm.knows_unknown:
        warn("the model has seen no unknown word in training, so each costs much perplexity.")
    if settings.dynamic and isinstance(lm, rnnlm.Model) and score.perplexity > (words := len(lm.saved.vocabulary)):
        warn(f"what was learned is worse than an even guess among {words:,} words; give --dynamic a lower rate.")
    click.echo(json.dumps(score.to_json(), indent=2) if as_json else _table(score))


def _table(score: Score) -> str:
    """Line the figures up."""
    rows = {
        "sentences": f"{score.sentences:,}",
        "words": f"{score.words:,}",
        "unknown words": f"{score.unknown:,}",
        "predictions": f"{score.predictions:,}",
        "perplexity": figure(score.perplexity),
        "  excluding unknown words": figure(score.perplexity_excluding_unknown),
        "bits per prediction": f"{score.bits_per_prediction:,.3f}",
    }
    width = max(map(len, rows.values()))
    return "\n".join(f"{name:<26}{value:>{width}}" for name, value in rows.items())
