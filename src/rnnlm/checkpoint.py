"""Files of a model: one versioned format, written whole or not at all.

A file is an `.npz`, a zip archive of arrays, whose entry `rnnlm` holds JSON as UTF-8 bytes: the format's name and
version, the settings, and everything else that is no array. Nothing is ever pickled. docs/formats.md lists the entries.

A model's folder holds `best.npz`, self-contained, for scoring and generation; `last.npz`, which adds all that training
needs to go on as if it had never stopped; `history.jsonl`, a line an evaluation; `curve.svg`; and `encoded-train`
and `encoded-valid`, the texts.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from rnnlm.corpus import Coverage
from rnnlm.errors import ModelError
from rnnlm.files import reason, replacing
from rnnlm.model import CELLS, Array, LanguageModel, ModelSettings, Workspace, parameter_table
from rnnlm.text import TextSettings, Tokenizer
from rnnlm.training import TrainingSettings, TrainingState, make_optimizer
from rnnlm.vocabulary import Vocabulary, VocabularySettings

FORMAT = "rnnlm model"
VERSION = 2
REMEDY = "make room or name another --model"  # where a file of a model cannot be written


@dataclass(frozen=True)
class NetworkSettings:
    """What is asked of the network; the vocabulary decides the rest of `ModelSettings`."""

    hidden: int = 100  # H
    clusters: int | None = None  # of words, in which the softmax is computed; None: as many as are quickest
    truncate: int | None = None  # K; None: to the window's first step
    carry_state: bool = False  # from sentence to sentence, in text order


@dataclass(frozen=True)
class RunSettings:
    """All that decides what a training computes: its texts, how they become words, the network, the training."""

    corpus: tuple[str, ...]  # paths, or - for standard input
    valid: tuple[str, ...] = ()  # the same; none: the end of the corpus
    valid_fraction: float = 0.05  # share of the corpus's sentences that is then held out
    text: TextSettings = field(default_factory=TextSettings)
    vocabulary: VocabularySettings = field(default_factory=VocabularySettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as a value that JSON can hold."""
        value = asdict(self)
        value["vocabulary"]["file"] = None if self.vocabulary.file is None else str(self.vocabulary.file)
        return value

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> RunSettings:
        """Restore settings from what `to_json` gave. Raises KeyError or TypeError when the value is something else."""
        words = dict(value["vocabulary"])
        words["file"] = None if words["file"] is None else Path(words["file"])
        return cls(
            corpus=tuple(value["corpus"]),
            valid=tuple(value["valid"]),
            valid_fraction=value["valid_fraction"],
            text=TextSettings(**value["text"]),
            vocabulary=VocabularySettings(**words),
            network=NetworkSettings(**value["network"]),
            training=TrainingSettings(**value["training"]),
        )


@dataclass(frozen=True)
class Origin:
    """Where a model comes from: its run, its text, and how far it had come."""

    settings: RunSettings
    keys: tuple[str, str]  # of the encoded corpora, training and validation
    coverage: Coverage  # of the training text
    epoch: int = 0  # 0: not trained yet
    window: int = 0
    valid_perplexity: float | None = None
    history: tuple[dict[str, Any], ...] = ()  # a record for each evaluation so far

    def to_json(self) -> dict[str, Any]:
        """Return it as a value that JSON can hold."""
        return {**asdict(self), "settings": self.settings.to_json()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Origin:
        """Restore it from what `to_json` gave. Raises KeyError, TypeError or ValueError when it is something else."""
        train_key, valid_key = value["keys"]
        known = {
            "settings": RunSettings.from_json(value["settings"]),
            "keys": (train_key, valid_key),
            "coverage": Coverage(**value["coverage"]),
            "history": tuple(value["history"]),
        }
        return cls(**{**value, **known})


@dataclass(frozen=True)
class SavedModel:
    """A model with all that is needed to use it."""

    model: LanguageModel
    vocabulary: Vocabulary
    tokenizer: Tokenizer
    origin: Origin


class ModelFolder:
    """The names of the files of one model."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.best = self.path / "best.npz"
        self.last = self.path / "last.npz"
        self.history = self.path / "history.jsonl"
        self.curve = self.path / "curve.svg"

    def holds_model(self) -> bool:
        """Say whether training would overwrite anything here."""
        return any(path.exists() for path in (self.best, self.last, self.history))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder and keep other runs out of it; a folder that was made in vain is removed.

        Raises ModelError when it cannot be made, or when another run is training there.
        """
        made = [path for path in (self.path, *self.path.parents) if not path.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            message = f"cannot be a model's folder ({reason(error)}); name another with --model"
            raise ModelError(f"{self.path}: {message}") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            message = "another rnnlm is training here; wait for it, or name another folder with --model"
            raise ModelError(f"{self.path}: {message}") from None
        try:
            yield
        finally:
            if made and not self.holds_model():
                for entry in self.path.glob("encoded-*"):
                    shutil.rmtree(entry, ignore_errors=True)
                with suppress(OSError):  # one that is not empty stays, with its parents
                    for path in made:
                        path.rmdir()
            os.close(handle)

    def remove_results(self) -> None:
        """Remove what an older model of this folder has reached, and keep `last.npz`, which is the new one's."""
        for path in (self.best, self.history, self.curve):
            path.unlink(missing_ok=True)

    def write_history(self, history: list[dict[str, Any]]) -> None:
        """Write all records, a line each."""
        with replacing(self.history, ModelError, REMEDY) as file:
            file.writelines(json.dumps(record).encode() + b"\n" for record in history)


def save_model(path: Path, saved: SavedModel) -> None:
    """Write a self-contained model."""
    arrays, about = _model_parts(saved)
    _write(path, about, arrays)


def save_training(path: Path, state: TrainingState, saved: SavedModel) -> None:
    """Write a model together with where its training stands."""
    arrays, about = _model_parts(replace(saved, model=state.model))
    for name, memory in state.optimizer.memory.items():
        arrays |= {f"optimizer/{slot}/{name}": array for slot, array in memory.items()}
    if state.states is not None:
        arrays["states"] = state.states
    _write(path, {**about, "state": state.to_json(), "owed": state.optimizer.owed}, arrays)


def load_model(path: str | Path) -> SavedModel:
    """Read a model from its folder (its best, or its last if there is no best yet) or from an `.npz`.

    Raises ModelError when the file is missing, damaged, not a model, or of another format.
    """
    path, about, arrays = _read(_model_file(Path(path)))
    if "state" not in about:
        return _saved_model(path, about, arrays)
    state, saved = _training(path, about, arrays)
    state.optimizer.decay(saved.model.parameters, Workspace())  # it may be owed, and training only evaluates without
    return saved


def load_training(folder: ModelFolder) -> tuple[TrainingState, SavedModel]:
    """Read all that is needed to go on training. Raises ModelError as `load_model` does."""
    if not folder.last.exists():
        remedy = "train without --resume, or with --overwrite in the place of another model"
        raise ModelError(f"{folder.last}: there is no training to resume here; {remedy}")
    return _training(*_read(folder.last))


def _training(path: Path, about: dict[str, Any], arrays: dict[str, Array]) -> tuple[TrainingState, SavedModel]:
    saved = _saved_model(path, about, arrays)
    with _damage_named(path):
        optimizer = make_optimizer(saved.origin.settings.training, saved.model, saved.vocabulary.counts)
        optimizer.owed = about["owed"]
        for name, memory in optimizer.memory.items():
            for slot, array in memory.items():
                found = arrays[f"optimizer/{slot}/{name}"]
                if (found.shape, found.dtype) != (array.shape, array.dtype):  # nothing is broadcast or rounded
                    raise ValueError("shapes of the optimizer's memory")
                memory[slot] = found
        state = TrainingState(saved.model, optimizer, states=arrays.get("states"), **about["state"])
        if state.states is not None and state.states[:, :, :1].shape != saved.model.start(1).shape:
            raise ValueError("shape of states")
    return state, saved


def _model_parts(saved: SavedModel) -> tuple[dict[str, Array], dict[str, Any]]:
    arrays = {f"parameters/{name}": array for name, array in saved.model.parameters.items()}
    arrays |= {f"vocabulary/{name}": array for name, array in saved.vocabulary.to_arrays().items()}
    about = {
        "model": asdict(saved.model.settings),
        "tokenizer": saved.tokenizer.to_json(),
        "origin": saved.origin.to_json(),
    }
    return arrays, about


def _saved_model(path: Path, about: dict[str, Any], arrays: dict[str, Array]) -> SavedModel:
    with _damage_named(path):
        settings = ModelSettings(**{**about["model"], "cutoffs": tuple(about["model"]["cutoffs"])})
        parts = {"parameters": {}, "vocabulary": {}}  # type: dict[str, dict[str, Array]]
        for name, array in arrays.items():
            group, _, item = name.partition("/")
            if group in parts:
                parts[group][item] = array
        if settings.cell not in CELLS:
            raise ModelError(f"{path}: has cells of the kind {settings.cell!r}, which this rnnlm lacks; upgrade rnnlm")
        expected = {name: parameter.shape for name, parameter in parameter_table(settings).items()}
        parameters = parts["parameters"]
        if {name: array.shape for name, array in parameters.items()} != expected:
            raise ValueError("shapes of parameters")
        if not all(array.dtype.kind == "f" and np.isfinite(array).all() for array in parameters.values()):
            raise ValueError("numbers of parameters")
        vocabulary = Vocabulary.from_arrays(parts["vocabulary"])
        if len(vocabulary) != settings.words:
            raise ValueError("size of vocabulary")
        model = LanguageModel(settings, parameters)
        return SavedModel(model, vocabulary, Tokenizer.from_json(about["tokenizer"]), Origin.from_json(about["origin"]))


def _model_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    folder = ModelFolder(path)
    if not folder.best.exists() and not folder.last.exists():
        raise ModelError(
            f"{path}: this folder holds no model; train one with `rnnlm train` or name another with --model"
        )
    return folder.best if folder.best.exists() else folder.last


def _write(path: Path, about: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    text = json.dumps({"format": FORMAT, "version": VERSION, **about})
    with replacing(path, ModelError, REMEDY) as file:
        np.savez(file, allow_pickle=False, rnnlm=np.frombuffer(text.encode(), np.uint8), **arrays)


def _read(path: Path) -> tuple[Path, dict[str, Any], dict[str, Array]]:
    try:
        with path.open("rb") as file, _damage_named(path):
            if file.read(4) != b"PK\x03\x04":
                raise _foreign(path)
            file.seek(0)
            archive = np.load(file, allow_pickle=False)
            if "rnnlm" not in archive.files:
                raise _foreign(path)
            about = json.loads(archive["rnnlm"].tobytes())
            _check_version(path, about)
            arrays = {name: archive[name] for name in archive.files if name != "rnnlm"}
    except FileNotFoundError:
        raise ModelError(
            f"{path}: there is no model here; train one with `rnnlm train` or name another with --model"
        ) from None
    except OSError as error:
        remedy = "see to its permissions, or name another with --model"
        raise ModelError(f"{path}: cannot be read ({reason(error)}); {remedy}") from None
    return path, about, arrays


def _check_version(path: Path, about: Any) -> None:
    if about["format"] != FORMAT:
        raise _foreign(path)
    if about["version"] > VERSION:
        raise ModelError(
            f"{path}: was written by a newer rnnlm (format {about['version']}, this one reads {VERSION}); "
            "upgrade rnnlm to use it"
        )
    if about["version"] < VERSION:
        raise ModelError(
            f"{path}: was written by an older rnnlm (format {about['version']}, this one reads {VERSION}); "
            "train the model again"
        )


def _foreign(path: Path) -> ModelError:
    return ModelError(f"{path}: is not a model of rnnlm; name a model's folder or its .npz with --model")


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (ModelError, OSError):
        raise
    except Exception:  # whatever a damaged archive makes zipfile, numpy, json or our own constructors raise
        raise ModelError(f"{path}: is damaged or incomplete; use another copy of it, or train again") from None
