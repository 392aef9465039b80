"""Files of a model: one versioned format, written whole or not at all, and believed in nothing.

A file is an `.npz`, a zip archive of arrays, whose entry `rnnlm` holds JSON as UTF-8 bytes: the format's name and
version, the settings, and everything else that is no array. Nothing is ever pickled. docs/formats.md lists the entries.

A model's folder holds `best.npz`, self-contained, for scoring and generation; `last.npz`, which adds all that training
needs to go on as if it had never stopped; `history.jsonl`, a line an evaluation; `curve.svg`; and `encoded-train`
and `encoded-valid`, the texts. Until its first evaluation a run is in `new.npz`, and an older model stays as it is.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import math
import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from rnnlm.archive import ABOUT_LIMIT, REMEDY, Archive, foreign, reading, sound, write
from rnnlm.checking import Checked, Range, Unfit, fit, restore
from rnnlm.corpus import Coverage
from rnnlm.errors import ModelError
from rnnlm.files import open_plain, reason, replacing, temporary_name
from rnnlm.model import CELLS, Array, LanguageModel, ModelSettings, Workspace, parameter_table
from rnnlm.settings import Natural, NotNegative, Positive, RunSettings
from rnnlm.text import Tokenizer
from rnnlm.training import AVERAGE_STEPS, Record, TrainingState, make_optimizer
from rnnlm.vocabulary import Vocabulary

FORMAT = "rnnlm model"
VERSION = 4
WORD_BYTES = 256  # of words in a file, the average that a reader accepts; a text of longer words has few of them
SPARE_BYTES = 2**26  # and so many more
ORTHOGRAPHY_BYTES = 2**25  # of the words that Punkt has seen in the first four million characters of a text
# The least and the greatest number that each state of a cell may hold: what tanh gives lies within 1, rounding apart; c
# of an LSTM, and what relu gives, grow without a bound.
ONE = 1.000001
STATES = {
    "elman": ((-ONE, ONE),),
    "relu": ((0.0, math.inf),),
    "sigmoid": ((0.0, ONE),),
    "gru": ((-ONE, ONE),),
    "lstm": ((-ONE, ONE), (-math.inf, math.inf)),
}


@dataclass(frozen=True)
class Origin(Checked):
    """Where a model comes from: its run, its text, and how far it had come. Raises Unfit as `Checked` does."""

    run: str  # a random name, which all files of a run share
    replaces: str | None  # the run whose files were here when this one began
    settings: RunSettings  # with what was chosen in the place of None
    keys: tuple[str, str]  # of the encoded corpora, training and validation
    coverage: Coverage  # of the training text
    epoch: Natural = 0  # 0: not trained yet
    window: Natural = 0
    valid_perplexity: Positive | None = None
    history: tuple[Record, ...] = ()  # of all evaluations so far


@dataclass(frozen=True)
class SavedModel:
    """A model with all that is needed to use it."""

    model: LanguageModel
    vocabulary: Vocabulary
    tokenizer: Tokenizer
    origin: Origin


class ModelFolder:
    """The names of the files of one model, wherever the program goes afterwards.

    Raises ModelError where there can be no such folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        name = os.fspath(path) if isinstance(path, str | os.PathLike) else None
        if not isinstance(name, str) or not name or "\0" in name:
            raise ModelError(f"{path!r} is no name of a folder; name one with --model")
        self.name = Path(name)  # as messages call it
        try:
            self.path = self.name.absolute()
        except OSError as error:
            raise ModelError(f"{name}: cannot be found from here ({reason(error)}); change to another folder") from None
        self._handle: int | None = None  # of the folder, while it is held
        self._holder = 0  # the process that holds it
        self.best = self.path / "best.npz"
        self.last = self.path / "last.npz"
        self.new = self.path / "new.npz"
        self.history = self.path / "history.jsonl"
        self.curve = self.path / "curve.svg"

    def holds_model(self) -> bool:
        """Say whether training would overwrite anything here."""
        return any(os.path.lexists(path) for path in self.files)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that a run writes here, but for encoded texts."""
        return self.best, self.last, self.new, self.history, self.curve

    def check_places(self) -> None:
        """Raise ModelError where something stands in a file's place that is none, before any work is done in vain."""
        for path in self.files:
            if path.exists() and not path.is_file():
                raise ModelError(f"{path}: is no plain file; move it away, or name another folder with --model")

    def check_held(self) -> None:
        """Raise ModelError where the folder that is held is no longer the one of its name."""
        if self._handle is not None and not self._in_place():
            raise ModelError(f"{self.name}: the folder was moved or removed during training; move it back, and resume")

    def is_forked(self) -> bool:
        """Say whether this process is a copy of the one that holds the folder, and has no part in it."""
        return self._holder not in (0, os.getpid())

    def _in_place(self) -> bool:
        """Say whether the folder that is held is the one of its name."""
        with suppress(OSError):
            return self._handle is not None and os.path.samestat(os.fstat(self._handle), self.path.stat())
        return False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder and keep other runs out of it; a folder that was made in vain is removed.

        What a kill has left of files half written is removed too.

        Raises ModelError when it cannot be made, or when another run is training there.
        """
        made = [path for path in (self.path, *self.path.parents) if not path.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self.path, os.O_RDONLY)
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._holder = os.getpid()
            for path in self.files:  # what a kill has left of a file that may not be written again
                with suppress(OSError):
                    temporary_name(path).unlink(missing_ok=True)
        except BlockingIOError:
            self._release([])
            message = "another rnnlm is training here; wait for it, or name another folder with --model"
            raise ModelError(f"{self.name}: {message}") from None
        except OSError as error:
            self._release(made)
            message = f"cannot be a model's folder ({reason(error)}); name another with --model"
            raise ModelError(f"{self.name}: {message}") from None
        try:
            yield
        finally:
            self._release(made)

    def _release(self, made: list[Path]) -> None:
        """Let the folder go, and remove it, and the parents that were made with it, where it holds no model."""
        if self.is_forked():
            return
        if made and (self._handle is None or self._in_place()) and not self.holds_model():
            for entry in self.path.glob("encoded-*"):
                shutil.rmtree(entry, ignore_errors=True)
            for path in made:
                with suppress(OSError):  # one that is not empty stays, and so do its parents
                    path.rmdir()
        if self._handle is not None:
            with suppress(OSError):
                fcntl.flock(self._handle, fcntl.LOCK_UN)  # a process that was forked meanwhile keeps its handle
            os.close(self._handle)
            self._handle = None

    def write_history(self, run: str, history: list[Record]) -> None:
        """Write all records, a line each, with the run's name."""
        with replacing(self.history, ModelError, REMEDY) as file:
            file.writelines(json.dumps({"run": run, **asdict(record)}).encode() + b"\n" for record in history)

    def read_history(self, run: str) -> list[Record]:
        """Read the records of a run; none where the file is missing or another run's. ModelError as elsewhere."""
        lines = self._history_lines()
        if {line["run"] for line in lines} != {run}:
            return []
        with sound(self.history):
            parts = ({name: value for name, value in line.items() if name != "run"} for line in lines)
            records = [restore(Record, part, f"line {number}") for number, part in enumerate(parts, 1)]
            if any((after.epoch, after.window) <= (record.epoch, record.window) for record, after in pairwise(records)):
                raise ValueError("its evaluations are not in the order of training")
            return records

    def _history_lines(self) -> list[dict[str, Any]]:
        if not os.path.lexists(self.history):
            return []
        with sound(self.history), open_plain(self.history) as file:
            content = file.read(ABOUT_LIMIT + 1)
            if len(content) > ABOUT_LIMIT:
                raise ValueError(f"it has more than {ABOUT_LIMIT:,} bytes")
            lines = [json.loads(line) for line in content.splitlines()]
            if not all(isinstance(line, dict) and isinstance(line.get("run"), str) for line in lines):
                raise ValueError("a line is not an object with the name of its run")
            return lines

    def owns(self, path: Path, hidden: bool = True) -> bool:
        """Say whether a path is that of a file of the folder's own, or within an encoded text; or `hidden` in it."""
        with suppress(OSError, RuntimeError, ValueError):  # a loop of links; a path elsewhere
            first, *below = path.resolve().relative_to(self.path.resolve()).parts
            encoded = first.startswith("encoded-") and bool(below)
            own = {name for file in self.files for name in (file.name, temporary_name(file).name)}
            return encoded or first in own or (hidden and first[0] == ".")
        return False

    def run_to_replace(self) -> str | None:
        """Name the run whose files are here; None where there are none that can be read."""
        with suppress(ModelError):
            return next(iter(self.runs().values()), None)
        return None

    def runs(self) -> dict[Path, str]:
        """Name the run of each file here; raises ModelError where a file is not sound."""
        runs = {}
        for path in (self.best, self.last):
            if os.path.lexists(path):
                with reading(path) as archive:
                    runs[path] = restore(Origin, _about(path, archive)["origin"], "origin").run
        lines = self._history_lines()
        return runs | ({self.history: lines[-1]["run"]} if lines else {})


def save_model(path: Path, saved: SavedModel) -> None:
    """Write a self-contained model."""
    arrays, about = _model_parts(saved)
    write(path, about, arrays)


def save_training(path: Path, state: TrainingState, saved: SavedModel) -> None:
    """Write a model together with where its training stands."""
    arrays, about = _model_parts(replace(saved, model=state.model))
    for name, memory in state.optimizer.memory.items():
        arrays |= {f"optimizer/{slot}/{name}": array for slot, array in memory.items()}
    if state.states is not None:
        arrays["states"] = state.states
    arrays |= {f"average/{name}": array for name, array in (state.average or {}).items()}
    write(path, {**about, "state": state.to_json(), "owed": state.optimizer.owed}, arrays)


def load_model(path: str | os.PathLike[str]) -> SavedModel:
    """Read a model from its folder (its best, or its last if there is no best) or from an `.npz`.

    Raises ModelError when the file is missing, damaged, not a model, or of another format.
    """
    state, saved = load_saved(model_file(path))
    if state is None:
        return saved
    state.optimizer.decay(saved.model.parameters, Workspace())  # owed, as training only evaluates without
    return replace(saved, model=state.result, origin=replace(saved.origin, history=tuple(state.history)))


def read_history(path: str | os.PathLike[str], origin: Origin) -> list[Record]:
    """Read the evaluations of a run: from the model, or from the folder that it is or lies in."""
    if Path(path).is_dir():
        return ModelFolder(path).read_history(origin.run) or list(origin.history)
    return list(origin.history) or ModelFolder(Path(path).parent).read_history(origin.run)


def load_training(folder: ModelFolder) -> tuple[TrainingState, SavedModel]:
    """Read all that is needed to go on training. Raises ModelError as `load_model` does.

    Also where a file in the folder is of another run, which going on would overwrite.
    """
    path = folder.new if os.path.lexists(folder.new) else folder.last
    if not os.path.lexists(path):
        other = "begin one with the weights of the model that is there, by --from, or "
        remedy = f"{other if os.path.lexists(folder.best) else ''}train without --resume"
        raise ModelError(f"{folder.name}: there is no training to resume here; {remedy}")
    state, saved = load_saved(path)
    try:
        runs = folder.runs()
    except ModelError:
        if path != folder.new or saved.origin.replaces is not None:
            raise
        runs = {}  # files that could not be read when the run began, which was to replace them
    if path == folder.new and runs.get(folder.last) == saved.origin.run:  # it has been evaluated, and then was killed
        path = folder.last
        state, saved = load_saved(path)
    if state is None:
        raise ModelError(f"{path}: is no training to resume; put the run's own last.npz back, or train again")
    if bool(state.history) != (path == folder.last):
        raise ModelError(f"{path}: is damaged: its history does not go with its name; train again with --overwrite")
    origin = saved.origin
    for file, run in runs.items():
        if run != origin.run and (state.history or run != origin.replaces):
            message = f"is of another run than {path.name}, and going on would overwrite it"
            raise ModelError(f"{file}: {message}; put the file of this run back, or move one of them away")
    if state.history and folder.best not in runs:
        raise ModelError(
            f"{folder.best}: is missing, though {path.name} says there was one; put it back, or train again"
        )
    return state, saved


def load_saved(path: Path) -> tuple[TrainingState | None, SavedModel]:
    """Read a model, and where its training stands if the file says so."""
    with reading(path) as archive:
        about = _about(path, archive)
        saved = _saved_model(path, about, archive)
        names = {"rnnlm", "vocabulary/words", "vocabulary/counts"}
        names |= {f"parameters/{name}" for name in saved.model.parameters}
        names |= {"first"} if saved.model.first is not None else set()
        if saved.tokenizer.punkt:
            names |= {"tokenizer/words", "tokenizer/flags"}
        state = None
        if "state" in about:
            state = _training_state(about, archive, saved)
            names |= {f"optimizer/{slot}/{name}" for name, kept in state.optimizer.memory.items() for slot in kept}
            names |= {"states"} if state.states is not None else set()
            names |= {f"average/{name}" for name in state.average or {}}
        for name in sorted(archive.names ^ names):
            raise ValueError(f"its entry {name!r} {'is missing' if name in names else 'does not belong to it'}")
    return state, saved


def _about(path: Path, archive: Archive) -> dict[str, Any]:
    """Return the JSON of a model's file, of which the format and the keys are checked."""
    if "rnnlm" not in archive.names:
        raise foreign(path)
    about = archive.about()
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise foreign(path)
    version = fit(Annotated[int, Range(1)], about.get("version"), "version")
    if version != VERSION:
        newer, older = ("a newer", "upgrade rnnlm to use it"), ("an older", "train the model again")
        age, remedy = newer if version > VERSION else older
        formats = f"format {version}, this one reads {VERSION}"
        raise ModelError(f"{path}: was written by {age} rnnlm ({formats}); {remedy}")
    keys = {"format", "version", "model", "tokenizer", "origin"} | ({"state", "owed"} if "state" in about else set())
    if about.keys() != keys:
        raise ValueError(f"it has the keys {', '.join(sorted(about))} and not {', '.join(sorted(keys))}")
    with suppress(KeyError, TypeError, AttributeError):  # what is no object is found to be none later on
        for name in ("average_every", "decay_from"):  # older files are of one process, and of a rate that waits
            about["origin"]["settings"]["training"].setdefault(name, 0)
        about["state"].setdefault("ranks", 1)
    return about


def _saved_model(path: Path, about: dict[str, Any], archive: Archive) -> SavedModel:
    settings = restore(ModelSettings, about["model"], "model")
    if settings.cell not in CELLS:
        raise ModelError(f"{path}: has cells of the kind {settings.cell!r}, which this rnnlm lacks; upgrade rnnlm")
    _check_sizes(settings)
    model = LanguageModel(settings, _numbers(archive, "parameters/", _shapes(settings)))
    if "first" in archive.names:
        model.first = _read_states(archive, "first", settings)
        parameters = model.parameters
        if model.first.shape[:2] != (1, 1) or "X1" in parameters or parameters["b1"].size != settings.hidden:
            raise ValueError("its entry first goes with one layer of one gate and no X")
    most = WORD_BYTES * settings.words + SPARE_BYTES
    words = archive.array("vocabulary/words", np.uint8, None, most)
    counts = archive.array("vocabulary/counts", np.int64, (settings.words,))
    vocabulary = Vocabulary.from_arrays({"words": words, "counts": counts})
    tokenizer = restore(Tokenizer, _with_orthography(about["tokenizer"], archive), "tokenizer")
    return SavedModel(model, vocabulary, tokenizer, restore(Origin, about["origin"], "origin"))


def _with_orthography(tokenizer: Any, archive: Archive) -> Any:
    """Return a tokenizer's JSON with what Punkt has seen of each word, which would make it long, from its arrays."""
    if "tokenizer/words" not in archive.names or not isinstance(tokenizer, dict):
        return tokenizer
    stored = archive.array("tokenizer/words", np.uint8, None, ORTHOGRAPHY_BYTES).tobytes()
    words = stored.decode().split("\n") if stored else []
    flags = archive.array("tokenizer/flags", np.int64, (len(words),)).tolist()
    return {**tokenizer, "punkt": {**tokenizer["punkt"], "orthography": dict(zip(words, flags, strict=True))}}


def _check_sizes(settings: ModelSettings) -> None:
    """Raise Unfit where no model has such sizes."""
    ranges = {"words": Range(3), "hidden": Range(1, 100_000), "layers": Range(1, 100)}
    for name, limits in {**ranges, "truncate": Range(0), "embedding": Range(1, 100_000)}.items():
        value = getattr(settings, name)
        if not limits.holds(value if value is not None else limits.low):
            raise Unfit(f"model.{name}", value, f"a whole number {limits}")
    edges = (-1, *settings.cutoffs, settings.words)
    if any(first >= second for first, second in itertools.pairwise(edges)):
        raise Unfit("model.cutoffs", settings.cutoffs, f"a list of rising numbers from 0 to below {settings.words}")
    if settings.tied and settings.layers == 1 and settings.embedding not in (None, settings.hidden):
        raise Unfit("model.embedding", settings.embedding, f"the {settings.hidden} units of one table of words")


def _shapes(settings: ModelSettings) -> dict[str, tuple[int, ...]]:
    return {name: parameter.shape for name, parameter in parameter_table(settings).items()}


def _numbers(archive: Archive, prefix: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, Array]:
    """Read float32 arrays of these shapes, all of whose numbers are finite."""
    arrays = {}
    for name, shape in shapes.items():
        arrays[name] = archive.array(prefix + name, np.float32, shape)
        if not np.isfinite(arrays[name]).all():
            raise ValueError(f"its entry {prefix}{name} has a number that is not finite")
    return arrays


def _training_state(about: dict[str, Any], archive: Archive, saved: SavedModel) -> TrainingState:
    """Read where training stands: each number in its range, each array of the shape that the model's is."""
    settings, shapes = saved.origin.settings.training, _shapes(saved.model.settings)
    if settings.batch_size is None or settings.lr is None:
        raise Unfit("origin.settings.training", None, "the batch size and the learning rate that were chosen")
    optimizer = make_optimizer(settings, saved.model, saved.vocabulary.counts)
    optimizer.owed = fit(NotNegative, about["owed"], "owed")
    for slot in optimizer.rule.slots:
        for name, array in _numbers(archive, f"optimizer/{slot}/", shapes).items():
            if slot in ("square", "squares") and array.min() < 0:
                raise ValueError(f"its entry optimizer/{slot}/{name} has a square below zero")
            optimizer.memory[name][slot] = array
    state = restore(
        TrainingState, about["state"], "state", model=saved.model, optimizer=optimizer, states=None, average=None
    )
    if state.window:
        streams = min(settings.batch_size, saved.origin.coverage.sentences)
        state.states = _read_states(archive, "states", saved.model.settings, streams)
    if settings.average and state.steps >= AVERAGE_STEPS:
        state.average = _numbers(archive, "average/", shapes)
    return state


def _read_states(archive: Archive, name: str, settings: ModelSettings, *streams: int) -> Array:
    """Read states (L, M, *streams, H); each number may be one that the cell gives."""
    limits = STATES[settings.cell]
    states = _numbers(archive, "", {name: (settings.layers, len(limits), *streams, max(settings.units))})[name]
    for number, (low, high) in enumerate(limits):
        if states[:, number].min() < low or states[:, number].max() > high:
            raise ValueError(f"its entry {name} has a number that no {settings.cell} cell gives")
    return states


def _model_parts(saved: SavedModel) -> tuple[dict[str, Array], dict[str, Any]]:
    arrays = {f"parameters/{name}": array for name, array in saved.model.parameters.items()}
    arrays |= {} if saved.model.first is None else {"first": saved.model.first}
    arrays |= {f"vocabulary/{name}": array for name, array in saved.vocabulary.to_arrays().items()}
    tokenizer = asdict(saved.tokenizer)
    if saved.tokenizer.punkt:
        seen: dict[str, int] = tokenizer["punkt"].pop("orthography")
        arrays["tokenizer/words"] = np.frombuffer("\n".join(seen).encode(), np.uint8)
        arrays["tokenizer/flags"] = np.array(list(seen.values()), np.int64)
    about = {
        "format": FORMAT,
        "version": VERSION,
        "model": asdict(saved.model.settings),
        "tokenizer": tokenizer,
        "origin": asdict(saved.origin),
    }
    return arrays, about


def model_file(path: str | os.PathLike[str]) -> Path:
    """Return the file of a model that is to be used."""
    try:
        given = Path(path)
        is_folder = given.is_dir()
    except (TypeError, ValueError, OSError):
        raise ModelError(f"{path!r} is no path; name a model's folder or its .npz") from None
    if not is_folder:
        return given
    for name in ("best.npz", "last.npz"):
        if os.path.lexists(given / name):
            return given / name
    if os.path.lexists(given / "new.npz"):
        resume = f"rnnlm train --resume --model {shlex.quote(str(given))}"
        remedy = f"go on with `{resume}`, or name its new.npz to use it as it is"
        raise ModelError(f"{given}: the model in this folder has not been evaluated yet; {remedy}")
    remedy = "train one with `rnnlm train` or name another"
    raise ModelError(f"{given}: this folder holds no model; {remedy}")
