"""A model in files that any program can read: its words, and its numbers as plain arrays."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np

from rnnlm.checkpoint import SavedModel
from rnnlm.errors import ModelError
from rnnlm.files import replacing
from rnnlm.model import CELLS, Array

REMEDY = "make room, or name another file"
MEANINGS = {
    "U": "a row for each word, by id, as it is read",
    "X": "z gets X times what the layer reads, in the gates that read",
    "W": "z gets W times the layer's output a step before, in the gates that recall",
    "b": "z gets this, in all gates",
    "V": "logits are V s + c: a row for each cutoff, then a row for each word, by id",
    "c": "the biases of these rows",
    "first": "states (layer, state, unit) before a text's first word",
}


def write_vocabulary(path: Path, saved: SavedModel) -> None:
    """Write the words by id, one a line, each with its count after a blank: what `--vocab` of a training reads.

    Raises ModelError where there is such a file already, or it cannot be written.
    """
    counted = zip(saved.vocabulary.words, saved.vocabulary.counts.tolist(), strict=True)
    check_free(path)
    with replacing(path, ModelError, REMEDY) as file:
        file.writelines(f"{word} {count}\n".encode() for word, count in counted)


def write_arrays(path: Path, saved: SavedModel) -> None:
    """Write an `.npz` of plain arrays, the first of them a note of what each is. Raises as `write_vocabulary` does."""
    own = saved.model.parameters | ({} if saved.model.first is None else {"first": saved.model.first})
    settings = np.array(json.dumps(asdict(saved.model.settings)))
    entries: dict[str, Array] = {"note": np.array(_note(saved, own)), "settings": settings}
    entries |= {**saved.vocabulary.to_arrays(), **own}
    check_free(path)
    with replacing(path, ModelError, REMEDY) as file:
        np.savez(file, **entries)  # type: ignore[arg-type]  # an option's name is none of ours


def _note(saved: SavedModel, own: dict[str, Array]) -> str:
    """Say what each array is, and how they make up the network."""
    settings, cell = saved.model.settings, CELLS[saved.model.settings.cell]
    cutoffs = ", ".join(map(str, settings.cutoffs))
    lines = [
        "A word-level recurrent language model of rnnlm; its derivation.md has the equations.",
        "settings: what kind of network it is, as JSON",
        "words: the words by id, as bytes of UTF-8 with line feeds between; id 0 ends a sentence",
        "counts: how often each occurred in training",
        *(f"{name} {array.shape}: {MEANINGS.get(name) or MEANINGS[name[0]]}" for name, array in own.items()),
        f"Gates, each with as many rows of z as W has columns: all {cell.gates}, those that read "
        f"{cell.reads or cell.gates}, those that recall {cell.recalls or cell.gates}.",
        "Without X1 a word's row is added to z as it is.",
        f"States are {'carried from sentence to sentence' if settings.carry_state else 'zero where id 0 is read'}.",
    ]
    if settings.tied:
        lines.append("U is the words' rows of V.")
    if settings.cutoffs:
        lines.append(
            f"The softmax is over the words below the first of the cutoffs {cutoffs} and a row for each cutoff;"
        )
        lines.append("that row's probability times a softmax over the words from there on is that of a word.")
    return "\n".join(lines)


def check_free(path: Path) -> None:
    """Raise ModelError where there is such a file already, a link too, or no folder for it."""
    if os.path.lexists(path):
        raise ModelError(f"{path}: is there already; remove it, or name another file")
    if not path.parent.is_dir():
        raise ModelError(f"{path}: there is no folder {path.parent}; make it, or name another file")
