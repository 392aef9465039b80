"""`rnnlm import`: models of other programs."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from rnnlm.cli.options import Command, Value, model_option, option
from rnnlm.cli.progress import say


@click.command(
    "import",
    cls=Command,
    short_help="Convert a model of another program.",
    epilog="""\b
    Example:
      rnnlm import rnnlm.model --model mikolov
    """,
)
@click.argument("file", type=Value(str), metavar="FILE")
@option("--words", type=Value(Path), help="The words of an .npz of the tutorial, one a line, in its order.")
@option(
    "--encoding",
    type=Value(str),
    default="utf-8",
    help="Encoding of the words in a model's file, and of the texts to come.",
)
@model_option(help="Folder of the model that is made.")
@option("--overwrite", is_flag=True, show_default=False, help="Replace the model in that folder.")
def import_(file: str, words: Path | None, encoding: str, model: str, overwrite: bool) -> None:
    """Make a model of FILE, which another program has written.

    It is a model of Mikolov's rnnlm 0.3 or 0.4, text or binary, without direct connections and compression; or an .npz
    with U, V and W of the tutorial's network. What is made of it can be scored, mixed, and trained on with --from.
    """
    from rnnlm.errors import SettingsError
    from rnnlm.foreign import import_model

    try:
        made = import_model(Path(file), model, words=words, encoding=encoding, overwrite=overwrite)
    except SettingsError as error:
        raise click.UsageError(f"{error}.") from None
    kind, name = made.model.settings, "" if model == "model" else f" --model {shlex.quote(model)}"
    say(f"{kind.words:,} words, {kind.hidden:,} hidden units; see rnnlm info{name}.")
    say(f"Model: {Path(model) / 'best.npz'}")
