"""`rnnlm generate`: sentences that a model makes up."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from rnnlm.cli.options import Command, Number, model_option, option, threads_option
from rnnlm.cli.progress import bar, say
from rnnlm.errors import SettingsError

SENTENCES, WORDS = "Sentences", "Choice of words"


@click.command(
    cls=Command,
    epilog="""\b
    Example:
      rnnlm generate --count 5 --temperature 0.8
    """,
)
@model_option(SENTENCES)
@option("--count", type=click.IntRange(0), default=10, group=SENTENCES, help="Sentences to write.")
@option("--prompt", default="", group=SENTENCES, show_default=False, help="Words that every sentence begins with.")
@option("--min-words", type=click.IntRange(0), default=1, group=SENTENCES, help="Fewest words, the prompt's included.")
@option(
    "--max-words",
    type=click.IntRange(1),
    default=100,
    group=SENTENCES,
    help="Most words, the prompt's included; a longer sentence is broken off.",
)
@option("--tokens", is_flag=True, group=SENTENCES, help="Print words as the model knows them, separated by blanks.")
@option(
    "--temperature",
    type=Number(0),
    default=1.0,
    group=WORDS,
    help="Below 1 likely words become likelier, above 1 rarer ones; 0 always takes the likeliest.",
)
@option("--top-k", type=click.IntRange(1), group=WORDS, help="Draw from this many of the likeliest words.")
@option(
    "--top-p",
    type=Number(0, 1, min_open=True),
    group=WORDS,
    help="Draw from the fewest words that have this much of the probability together.",
)
@option("--allow-unk", "allow_unknown", is_flag=True, group=WORDS, help="Let <unk> stand in the sentences.")
@option(
    "--seed",
    type=click.IntRange(0),
    group=WORDS,
    show_default="a new one, which is printed",
    help="The same seed writes the same sentences.",
)
@threads_option(SENTENCES)
def generate(
    model: Path,
    count: int,
    prompt: str,
    min_words: int,
    max_words: int,
    tokens: bool,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    allow_unknown: bool,
    seed: int | None,
    threads: int,
) -> None:
    """Write sentences, one a line, each word drawn from what the model expects after the words before it.

    The choice of words is narrowed in this order: <unk> and an early end are ruled out, --temperature is applied, then
    --top-k, then --top-p. What remains is drawn with the probabilities that it then has.
    """
    import numpy as np

    from rnnlm.checkpoint import load_model
    from rnnlm.detokenize import detokenize
    from rnnlm.generation import GenerationSettings
    from rnnlm.generation import generate as generate_ids
    from rnnlm.run import working

    try:
        settings = GenerationSettings(temperature, top_k, top_p, min_words, max_words, allow_unknown)
    except SettingsError as error:
        raise click.UsageError(f"{error}.") from None
    saved = load_model(model)
    vocabulary, prompt_words = saved.vocabulary, saved.tokenizer.words(prompt)
    _name_unknown([word for word in prompt_words if word not in vocabulary.ids])
    if seed is None:
        seed = secrets.randbits(32)
        say(f"Seed {seed}: --seed {seed} writes the same again.")
    generator, prompt_ids = np.random.default_rng(seed), vocabulary.encode(prompt_words).tolist()
    write = " ".join if tokens else detokenize
    with working(threads) as work:
        drawn = generate_ids(saved.model, vocabulary.unknown_id, count, generator, work, prompt_ids, settings)
        for ids in _counted(drawn, count):
            click.echo(write([*prompt_words, *vocabulary.decode(ids)]))


def _name_unknown(words: list[str]) -> None:
    if words:
        named = ", ".join(repr(word) for word in dict.fromkeys(words))
        say(f"The model does not know these words of the prompt, and reads each as <unk>: {named}.")


def _counted(sentences: Iterator[list[int]], count: int) -> Iterator[list[int]]:
    """Pass sentences on, with a bar unless they are seen to appear on the terminal."""
    if sys.stdout.isatty():
        yield from sentences
        return
    with bar("writing", count, " sentences") as progress:
        for sentence in sentences:
            yield sentence
            progress.update()
