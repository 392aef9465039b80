"""`rnnlm info`: what a model is and where it comes from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rnnlm.cli.options import Command, json_option, model_option

if TYPE_CHECKING:
    from rnnlm.checkpoint import SavedModel

FREQUENT = 10  # words that are shown
COLUMNS = ("epoch", "train_perplexity", "valid_perplexity", "learning_rate", "words_per_second", "seconds")


@click.command(
    cls=Command,
    epilog="""\b
    Example:
      rnnlm info --json
    """,
)
@model_option()
@json_option()
def info(model: Path, as_json: bool) -> None:
    """Describe a model: its settings, sizes and words, its text, its training and the perplexity that it reached."""
    from rnnlm.checkpoint import load_model

    report = _report(load_model(model))
    click.echo(json.dumps(report, indent=2, ensure_ascii=False) if as_json else _text(report))


def _report(saved: SavedModel) -> dict[str, Any]:
    """Collect what is known of a model, by subject."""
    settings, parameters, vocabulary = saved.model.settings, saved.model.parameters, saved.vocabulary
    tokenizer, origin, counts = saved.tokenizer, saved.origin, saved.vocabulary.counts
    run = origin.settings
    return {
        "model": {
            "cell": settings.cell,
            "hidden": settings.hidden,
            "truncate": settings.truncate,
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
            "vocab_size": run.vocabulary.size,
            "min_count": run.vocabulary.min_count,
            "file": None if run.vocabulary.file is None else str(run.vocabulary.file),
        },
        "text": {
            "files": list(run.corpus),
            "valid": list(run.valid),
            **({} if run.valid else {"valid_fraction": run.valid_fraction}),
            "pretokenized": tokenizer.settings.pretokenized,
            "lowercase": tokenizer.settings.lowercase,
            "encoding": tokenizer.settings.encoding,
            "abbreviations": len(tokenizer.punkt.abbreviations) if tokenizer.punkt else None,
            **{name: getattr(origin.coverage, name) for name in ("sentences", "words", "types", "unknown")},
        },
        "training": {**dataclasses.asdict(run.training), "epoch": origin.epoch},
        "valid_perplexity": origin.valid_perplexity,
        "history": list(origin.history),
    }


def _text(report: dict[str, Any]) -> str:
    """Lay the report out for reading: a block for each subject, then a line for each evaluation."""
    lines = []
    for subject in ("model", "vocabulary", "text", "training"):
        lines.append(subject.capitalize())
        lines += [f"  {name.replace('_', ' '):<20}{_shown(value)}" for name, value in report[subject].items()]
    lines.append(f"Validation perplexity {_shown(report['valid_perplexity'])}")
    if report["history"]:
        lines.append("".join(f"{name.replace('_', ' '):>18}" for name in COLUMNS))
    for record in report["history"]:
        lines.append("".join(f"{_shown(record.get(name)):>18}" for name in COLUMNS))
    return "\n".join(lines)


def _shown(value: object) -> str:
    """Return a value as people write it."""
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.2f}" if value >= 1 else f"{value:.4g}"
        case dict():
            return ", ".join(f"{name} {_shown(item)}" for name, item in value.items())
        case list():
            return (
                " × ".join(map(_shown, value)) if value and isinstance(value[0], int) else " ".join(map(_shown, value))
            )
        case _:
            return str(value)
