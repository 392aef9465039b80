"""`rnnlm export`: a model in files that any program can read."""

from __future__ import annotations

from pathlib import Path

import click

from rnnlm.cli.options import Command, Value, model_option, option


@click.command(
    cls=Command,
    short_help="Write a model's vocabulary, or its arrays.",
    epilog="""\b
    Example:
      rnnlm export --vocab words.txt --npz arrays.npz
    """,
)
@model_option()
@option("--vocab", type=Value(Path), help="Write the words, one a line, each with its count.")
@option("--npz", type=Value(Path), help="Write plain arrays, and a note of what each is.")
def export(model: str, vocab: Path | None, npz: Path | None) -> None:
    """Write a model in forms that any program can read.

    The words are what --vocab of rnnlm train reads. numpy.load opens the arrays, and print(arrays["note"]) says what
    they are. What is there already is not replaced.
    """
    from rnnlm.checkpoint import load_model
    from rnnlm.export import check_free, write_arrays, write_vocabulary

    if vocab is None and npz is None:
        raise click.UsageError("Say what to write, with --vocab or --npz.")
    if vocab is not None and npz is not None and vocab.absolute() == npz.absolute():
        raise click.UsageError("--vocab and --npz are two files; name another for one of them.")
    for path in filter(None, (vocab, npz)):  # before either is written
        check_free(path)
    saved = load_model(model)
    if vocab is not None:
        write_vocabulary(vocab, saved)
    if npz is not None:
        write_arrays(npz, saved)
