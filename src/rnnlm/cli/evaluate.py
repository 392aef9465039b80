"""`rnnlm evaluate`: the perplexity of a text."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rnnlm.cli.options import Command, json_option, model_option, option, threads_option
from rnnlm.cli.progress import bar, say, stage_bar

if TYPE_CHECKING:
    from rnnlm.checkpoint import SavedModel
    from rnnlm.model import Workspace
    from rnnlm.scoring import Score
    from rnnlm.text import Tokenizer


@click.command(
    cls=Command,
    epilog="""\b
    Example:
      echo "This is a sentence." | rnnlm evaluate -
    """,
)
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(allow_dash=True))
@model_option()
@option("--pretokenized", is_flag=True, help="One sentence a line, words separated by blanks, whatever the corpus was.")
@option("--encoding", show_default="that of the training text", help="Encoding of the files.")
@threads_option()
@json_option()
def evaluate(
    files: tuple[str, ...], model: Path, pretokenized: bool, encoding: str | None, threads: int, as_json: bool
) -> None:
    """Tell how well a model predicts FILE...: texts, plain or gzip, or - for standard input.

    The files are cut into sentences and words as the model's training text was. Perplexity is taken over all words and
    the end of each sentence, once with unknown words, as <unk>, and once without.
    """
    from rnnlm.checkpoint import load_model
    from rnnlm.run import working

    saved = load_model(model)
    tokenizer = _tokenizer(saved.tokenizer, pretokenized, encoding)
    with working(threads) as work:
        score = _score(saved, tokenizer, files, threads, work)
    if score.unknown > score.words / 2:
        say(
            f"Warning: {score.unknown / score.words:.0%} of the words are unknown to the model; "
            "is the text in its language, and cut into words as its corpus was (see rnnlm info)?"
        )
    click.echo(json.dumps(score.to_json(), indent=2) if as_json else _table(score))


def _tokenizer(tokenizer: Tokenizer, pretokenized: bool, encoding: str | None) -> Tokenizer:
    """Return the model's tokenizer, or one for another kind of file."""
    settings = dataclasses.replace(tokenizer.settings, encoding=encoding or tokenizer.settings.encoding)
    if pretokenized:
        return type(tokenizer)(dataclasses.replace(settings, pretokenized=True))
    return dataclasses.replace(tokenizer, settings=settings)


def _score(saved: SavedModel, tokenizer: Tokenizer, files: tuple[str, ...], threads: int, work: Workspace) -> Score:
    from rnnlm.corpus import encode_once
    from rnnlm.scoring import perplexity
    from rnnlm.sources import spooled

    vocabulary = saved.vocabulary
    with spooled(files) as sources:
        corpus = encode_once(sources, tokenizer, vocabulary, processes=threads, stage=stage_bar)
        with bar("scoring", corpus.predictions, " words") as progress:
            return perplexity(saved.model, corpus, work, unknown_id=vocabulary.unknown_id, progress=progress.update)


def _table(score: Score) -> str:
    """Line the figures up."""
    rows = {
        "sentences": f"{score.sentences:,}",
        "words": f"{score.words:,}",
        "unknown words": f"{score.unknown:,}",
        "predictions": f"{score.predictions:,}",
        "perplexity": f"{score.perplexity:,.2f}",
        "  without unknown words": f"{score.perplexity_excluding_unknown:,.2f}",
        "bits per word": f"{score.bits_per_word:,.3f}",
    }
    width = max(map(len, rows.values()))
    return "\n".join(f"{name:<24}{value:>{width}}" for name, value in rows.items())
