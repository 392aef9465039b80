"""`rnnlm generate`: sentences that a model makes up."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator
from typing import Any

import click

from rnnlm.cli.options import Command, Value, given, model_option, option, setting, threads_option
from rnnlm.cli.progress import bar, say, say_unknown
from rnnlm.errors import SettingsError
from rnnlm.settings import GenerationSettings, Natural

SENTENCES, WORDS = "Sentences", "Choice of words"


@click.command(
    cls=Command,
    short_help="Write sentences from a model.",
    epilog="""\b
    Example:
      rnnlm generate --count 5 --temperature 0.8
    """,
)
@model_option(SENTENCES)
@option("--count", type=Value(Natural), default=10, group=SENTENCES, help="Sentences to write.")
@option("--prompt", default="", group=SENTENCES, show_default=False, help="Begin every sentence with these words.")
@setting(GenerationSettings, "min_words", "Fewest words, those of the prompt included.", SENTENCES)
@setting(GenerationSettings, "max_words", "Break a sentence off after this many words.", SENTENCES)
@option("--tokens", is_flag=True, show_default=False, group=SENTENCES, help="Print tokens, separated by spaces.")
@setting(GenerationSettings, "temperature", "Sampling temperature; 0: always the likeliest word.", WORDS)
@setting(GenerationSettings, "top_k", "Draw from the N likeliest words.", WORDS, "all words")
@setting(
    GenerationSettings,
    "top_p",
    "Draw from the likeliest words that have this probability together.",
    WORDS,
    "all words",
)
@option("--allow-unk", is_flag=True, show_default=False, group=WORDS, help="Allow <unk> in sentences.")
@option("--seed", type=Value(Natural), group=WORDS, show_default="a new one, which is printed", help="Random seed.")
@threads_option(SENTENCES)
@click.pass_context
def generate(ctx: click.Context, /, model: str, count: int, prompt: str, threads: int, **_: Any) -> None:
    """Write sentences, one a line, each word drawn from what the model expects after the words before it.

    A prompt is cut into sentences and words as the training text was; its last sentence is continued. The choice of
    words is narrowed in this order: <unk> and an early end are ruled out, --temperature is applied, then --top-k, then
    --top-p.
    """
    import rnnlm
    from rnnlm.sources import printable

    options = given(ctx)
    for name in ("model", "count", "prompt", "threads"):
        options.pop(name, None)
    try:
        settings = {name: value for name, value in options.items() if name not in ("seed", "tokens")}
        greedy = GenerationSettings.of(count, options.get("seed"), settings).temperature == 0
    except SettingsError as error:
        raise click.UsageError(f"{error}.") from None
    lm = rnnlm.load(model, threads=threads)
    say_unknown(lm.prompt(prompt).unknown)
    if not greedy and "seed" not in options:
        options["seed"] = secrets.randbits(32)
        say(f"Seed {options['seed']}: --seed {options['seed']} writes the same again.")
    for sentence in _counted(lm.sentences(count, prompt, **options), count):
        click.echo(printable(sentence))


def _counted(sentences: Iterator[str], count: int) -> Iterator[str]:
    """Pass sentences on, with a bar unless they are seen to appear on the terminal."""
    if sys.stdout.isatty():
        yield from sentences
        return
    with bar("writing", count, " sentences") as progress:
        for sentence in sentences:
            yield sentence
            progress.update()
