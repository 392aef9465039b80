"""`rnnlm next`: the likeliest words after the beginning of a sentence."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from rnnlm.cli.options import ANY_MODEL, Command, Value, json_option, model_option, option, threads_option
from rnnlm.cli.progress import say_unknown, stage_bar
from rnnlm.errors import TextError
from rnnlm.settings import Count

if TYPE_CHECKING:
    from rnnlm.api import Model
    from rnnlm.mixture import Mixture


@click.command(
    "next",
    cls=Command,
    short_help="Print the likeliest next words.",
    epilog="""\b
    Example:
      rnnlm next --file prompts.txt --json
      rnnlm next "the cat" --count 10
    """,
)
@click.argument("prompt", metavar="[PROMPT]", default="")
@model_option(help=ANY_MODEL)
@option("--count", type=Value(Count), default=10, help="Words to print for each prompt.")
@option(
    "--pretokenized", is_flag=True, show_default=False, help="Take the words of prompts as they are, between spaces."
)
@option("--file", type=Value(str), metavar="FILE", help="Read prompts from this file, one a line.")
@option("--encoding", type=Value(str), show_default="that of the training text", help="Encoding of the prompts.")
@threads_option()
@json_option()
def next(
    prompt: str,
    model: str,
    count: int,
    pretokenized: bool,
    file: str | None,
    encoding: str | None,
    threads: int,
    as_json: bool,
) -> None:
    """Print the words that may follow PROMPT, the likeliest first, each with its probability.

    </s> is the end of the sentence, <unk> any word that the model does not know. Without PROMPT, the words that may
    begin a sentence. If it is -, prompts are read from standard input, one a line, and each row begins with the number
    of its prompt.
    """
    from rnnlm.mixture import open_scorer
    from rnnlm.sources import STANDARD_INPUT, printable

    if file is not None and prompt:
        raise click.UsageError("--file has prompts of its own; leave PROMPT out.")
    if encoding is not None and file is None and prompt != STANDARD_INPUT:
        raise click.UsageError("--encoding is of prompts that are read; leave it out.")
    lm = open_scorer(model, threads, stage_bar)
    several = file if file is not None else STANDARD_INPUT if prompt == STANDARD_INPUT else None
    prompts = [("", prompt)] if several is None else _lines(lm, several, encoding, pretokenized)
    for number, (place, text) in enumerate(prompts, 1):
        try:
            unknown = lm.prompt(text, pretokenized).unknown
        except TextError as error:
            raise TextError(f"{place}{error}") from None
        say_unknown(unknown, place)
        words = lm.next_words(text, count, pretokenized)
        if as_json:
            sys.stdout.write(f"{json.dumps({'prompt': text, 'words': words})}\n")
        else:
            begin = "" if several is None else f"{number}\t"
            sys.stdout.write("".join(f"{begin}{printable(word)}\t{probability:.6g}\n" for word, probability in words))


def _lines(lm: Model | Mixture, path: str, encoding: str | None, pretokenized: bool) -> Iterator[tuple[str, str]]:
    """Yield prompts as they come, each with its place; what is printed of some is sent before more are waited for."""
    from rnnlm.sources import arriving

    for block in arriving(path, encoding or lm.line_tokenizer(pretokenized).settings.encoding):
        yield from ((f"{block.name}, line {number}: ", text) for number, text in enumerate(block.lines, block.first))
        sys.stdout.flush()
