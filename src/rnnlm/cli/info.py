"""`rnnlm info`: what a model is and where it comes from."""

from __future__ import annotations

import dataclasses
import itertools
import json
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from rnnlm.cli.options import Command, json_option, model_option
from rnnlm.errors import counted

if TYPE_CHECKING:
    from rnnlm.checkpoint import SavedModel
    from rnnlm.training import Record

FREQUENT = 10  # words that are shown


@click.command(
    cls=Command,
    short_help="Describe a model.",
    epilog="""\b
    Example:
      rnnlm info --json
    """,
)
@model_option()
@json_option()
def info(model: str, as_json: bool) -> None:
    """Describe a model: its network, its vocabulary, its text, its training and the perplexity that it reached."""
    from rnnlm.checkpoint import load_model, read_history

    saved = load_model(model)
    history = read_history(model, saved.origin)
    click.echo(json.dumps(_report(saved, history), indent=2, ensure_ascii=False) if as_json else _text(saved, history))


def _report(saved: SavedModel, history: list[Record]) -> dict[str, Any]:
    """Collect what is known of a model, by subject."""
    settings, parameters, vocabulary = saved.model.settings, saved.model.parameters, saved.vocabulary
    tokenizer, origin, counts = saved.tokenizer, saved.origin, saved.vocabulary.counts
    run = origin.settings
    return {
        "model": {
            "cell": settings.cell,
            "layers": settings.layers,
            "hidden": settings.hidden,
            "embedding": settings.embedding or settings.hidden,
            "tied": settings.tied,
            "bptt_truncate": settings.truncate,
            "carry_state": settings.carry_state,
            "cutoffs": list(settings.cutoffs),
            "parameters": sum(array.size for array in parameters.values()),
            "bytes": sum(array.nbytes for array in parameters.values()),
            "shapes": {name: list(array.shape) for name, array in parameters.items()},
        },
        "vocabulary": {
            "words": len(vocabulary),
            "most_frequent": vocabulary.words[:FREQUENT],
            "unknown_share": int(counts[vocabulary.unknown_id]) / max(1, int(counts[1:].sum())),
            "vocab_size": run.vocabulary.vocab_size,
            "min_count": run.vocabulary.min_count,
            "vocab": None if run.vocabulary.vocab is None else str(run.vocabulary.vocab),
        },
        "text": {
            "files": list(run.corpus),
            "valid": list(run.valid),
            "valid_fraction": None if run.valid else run.valid_fraction,
            **dataclasses.asdict(tokenizer.settings),
            "abbreviations": len(tokenizer.punkt.abbreviations) if tokenizer.punkt else None,
            **{name: getattr(origin.coverage, name) for name in ("sentences", "words", "types", "unknown")},
        },
        "training": {**dataclasses.asdict(run.training), "from": run.initial, "epoch": origin.epoch},
        "valid_perplexity": origin.valid_perplexity,
        "history": [dataclasses.asdict(record) for record in history],
    }


def _text(saved: SavedModel, history: list[Record]) -> str:
    """Lay a model out for reading: a block for each subject, then a line for each evaluation."""
    lines = []
    for subject, rows in blocks(saved).items():
        lines.append(subject)
        lines += [_wrapped(f"  {name:<18}{value}") for name, value in rows.items()]
    if history:
        lines.append("Evaluations, * the best")
        lines.append("  epoch  window  training  validation  excl. unknown    rate  seconds  words/s")
        best = min(history, key=lambda record: record.valid_perplexity)
        lines += [_evaluation(record, record is best) for record in history]
    return "\n".join(lines)


def blocks(saved: SavedModel) -> dict[str, dict[str, str]]:
    """Say what a model is in words, by subject."""
    return {
        "Network": _network(saved),
        "Vocabulary": _vocabulary(saved),
        "Text": _source(saved),
        "Training": _training(saved),
    }


def _wrapped(row: str) -> str:
    """Break a row between words where it has more than 80 columns, under its value."""
    return textwrap.fill(row, 80, subsequent_indent=" " * 20, break_long_words=False, break_on_hyphens=False)


def _network(saved: SavedModel) -> dict[str, str]:
    settings, parameters = saved.model.settings, saved.model.parameters
    size, stored = (sum(getattr(array, name) for array in parameters.values()) for name in ("size", "nbytes"))
    edges = sorted({0, *settings.cutoffs, settings.words})  # the first cutoff may be 0
    sizes = [f"{last - first:,}" for first, last in itertools.pairwise(edges)]
    reach = "to the first step of a window" if settings.truncate is None else counted(settings.truncate, "step")
    embedding = f"{settings.embedding or settings.hidden:,}"
    return {
        "cell": settings.cell,
        "layers": f"{settings.layers}",
        "hidden units": _units(settings.units),
        "embedding": f"{embedding}, input and output tied" if settings.tied else embedding,
        "parameters": f"{size:,} ({stored / 1e6:,.1f} MB)",
        "softmax": "over all words" if len(sizes) == 1 else f"in {len(sizes)} clusters of {_listed(sizes)} words",
        "backpropagation": reach,
        "hidden state": "carried from sentence to sentence" if settings.carry_state else "reset at each sentence",
    }


def _units(units: tuple[int, ...]) -> str:
    *lower, last = units
    if not lower or last == lower[0]:
        return f"{last:,}{' in each layer' if lower else ''}"
    return f"{lower[0]:,}, and {last:,} in the last layer"


def _listed(items: list[str]) -> str:
    return " and ".join(part for part in (", ".join(items[:-1]), items[-1]) if part)


def _vocabulary(saved: SavedModel) -> dict[str, str]:
    vocabulary, asked, counts = saved.vocabulary, saved.origin.settings.vocabulary, saved.vocabulary.counts
    unknown = int(counts[vocabulary.unknown_id]) / max(1, int(counts[1:].sum()))
    most = f"at most {asked.vocab_size:,}" if asked.vocab_size is not None else "all"
    first = " ".join(_clean(vocabulary.words[:FREQUENT]))
    if not _counted(saved):
        return {"words": f"{len(vocabulary):,}, not counted", "the first": first}
    return {
        "words": f"{len(vocabulary):,}",
        "most frequent": first,
        "unknown": f"{unknown:.2%} of the training words",
        "chosen": f"from {asked.vocab}" if asked.vocab else f"{most}, {_often(asked.min_count)}",
    }


def _counted(saved: SavedModel) -> bool:
    """Say whether words were counted in the training text: of a model of the tutorial nobody knows that text."""
    return any(saved.origin.keys) or int(saved.vocabulary.counts.max()) > 1


def _often(min_count: int | None) -> str:
    if min_count is None:
        return "seen twice, or once if the text has <unk>"
    return f"seen {counted(min_count, 'time')} or more"


def _source(saved: SavedModel) -> dict[str, str]:
    settings, text, run = saved.tokenizer.settings, saved.origin.coverage, saved.origin.settings
    sentences = "one a line" if settings.line_is_sentence else "found by Punkt"
    words = "separated by spaces" if settings.pretokenized else "found by the word tokenizer"
    words += ", in lower case" if settings.lowercase else ""
    if not _counted(saved):
        return {"files": "unknown", "sentences": sentences, "words": words, "encoding": settings.encoding}
    return {
        "files": _files(run.corpus),
        "validation": _files(run.valid) if run.valid else f"the last {100 * run.valid_fraction:.2g}% of it, held out",
        "sentences": f"{text.sentences:,}, {sentences}",
        "words": f"{text.words:,}, {words}",
        "different words": f"{text.types:,}",
        "encoding": settings.encoding,
    }


def _files(paths: tuple[str, ...]) -> str:
    return " ".join(_clean(["standard input" if path == "-" else path for path in paths]))


def _training(saved: SavedModel) -> dict[str, str]:
    run, origin = saved.origin.settings, saved.origin
    if not any(origin.keys):  # no training of ours has made it
        return {"imported from": _clean([str(run.initial)])[0]}
    rows = {name.replace("_", " "): _shown(value) for name, value in vars(run.training).items() if value is not None}
    if run.initial is not None:
        rows["began with"] = _clean([run.initial])[0]
    rows["this model"] = (
        "not evaluated"
        if origin.valid_perplexity is None
        else (f"epoch {origin.epoch}, validation perplexity {origin.valid_perplexity:.2f}")
    )
    return rows


def _evaluation(record: Record, best: bool) -> str:
    known = record.valid_perplexity_excluding_unknown
    return (
        f"{'*' if best else ' '} {record.epoch:>5}{record.window:>8,}{_training_figure(record):>10.2f}"
        f"{record.valid_perplexity:>12.2f}{'none' if known is None else f'{known:.2f}':>15}"
        f"{record.learning_rate:>9.1e}{record.seconds:>8,.0f}{record.words_per_second:>9,}"
    )


def _training_figure(record: Record) -> float:
    """Return the perplexity in training: within an epoch only that with dropout is known."""
    return record.train_perplexity or record.running_perplexity


def _clean(words: Iterable[str]) -> list[str]:
    """Return words of a file without what would move a terminal's cursor."""
    from rnnlm.sources import printable

    return [printable(word) for word in words]


def _shown(value: object) -> str:
    """Return a value as people write it."""
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:g}"
        case _:
            return str(value)
