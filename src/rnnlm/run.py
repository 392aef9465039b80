"""Trainings from beginning to end: begin one, resume one, follow one; the door for Python users.

    folder = ModelFolder("model")
    with working(threads=2) as work, folder.held():
        run = begin(folder, RunSettings(("corpus.txt",)))
        for event in follow(run, folder, work):
            ...

Nothing here prints. What happens is an event, and whoever follows a run says when it shall stop.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rnnlm.checkpoint import (
    ModelFolder,
    Origin,
    RunSettings,
    SavedModel,
    load_model,
    load_training,
    save_model,
    save_training,
)
from rnnlm.clusters import choose_cutoffs
from rnnlm.corpus import Corpus, Stage, TrainingText, encode, prepare, reopen, silent
from rnnlm.curve import can_draw, draw_curve
from rnnlm.errors import DivergenceError, ModelError, SettingsError
from rnnlm.model import ModelSettings, Workspace, initialize
from rnnlm.sources import STANDARD_INPUT, spooled
from rnnlm.training import Evaluation, Progress, TrainingSettings, TrainingState, finished, train

__all__ = ["Changes", "Event", "ModelFolder", "NoPicture", "Run", "RunSettings", "SaveEvery", "Stopped", "begin"]
__all__ += ["follow", "load_model", "resume", "working"]


@contextmanager
def working(threads: int) -> Iterator[Workspace]:
    """Yield a workspace whose threads share the work instead of BLAS's own, so that their number changes no result."""
    import threadpoolctl

    with threadpoolctl.threadpool_limits(1, user_api="blas"), closing(Workspace(threads)) as work:
        yield work


class Run(NamedTuple):
    """What a training works on."""

    state: TrainingState
    saved: SavedModel
    corpus: Corpus
    valid: Corpus

    @property
    def settings(self) -> TrainingSettings:
        """How the model is trained."""
        return self.saved.origin.settings.training


@dataclass(frozen=True)
class Changes:
    """What may change when a run is resumed; None: as it was. None of it decides what an epoch's steps compute."""

    epochs: int | None = None
    patience: int | None = None


@dataclass(frozen=True)
class SaveEvery:
    """How often a run is saved, beside each evaluation: after so many windows or, where that is 0, seconds."""

    windows: int = 0
    seconds: float = 600.0


@dataclass(frozen=True)
class NoPicture:
    """The learning curve is not drawn: matplotlib is not installed."""


@dataclass(frozen=True)
class Stopped:
    """Training has ended, or was asked to stop; all of it is saved."""

    reason: str | None  # why it is over; None: it was asked to stop, and can be resumed


Event = Progress | Evaluation | NoPicture | Stopped


def begin(
    folder: ModelFolder,
    settings: RunSettings,
    *,
    overwrite: bool = False,
    processes: int = 1,
    stage: Stage = silent,
) -> Run:
    """Read the texts, and make a new model; the folder is to be held.

    `processes` tokenize at the same time, `stage` is called when a stage of that begins. Raises ModelError where the
    folder holds a model and `overwrite` is not set, and what `prepare` raises.
    """
    if folder.holds_model() and not overwrite:
        raise ModelError(
            f"{folder.path}: holds a model already; go on training it with --resume, replace it with --overwrite, "
            "or name another folder with --model"
        )
    text, valid = _read_texts(folder, settings, (None, None), processes, stage)
    training, network = settings.training.resolved(text.train.predictions), settings.network
    counts = text.vocabulary.counts
    positions = training.streams * (training.window or text.train.predictions // text.train.sentences)
    model_settings = ModelSettings(
        words=len(text.vocabulary),
        hidden=network.hidden,
        truncate=network.truncate,
        carry_state=network.carry_state,
        cutoffs=choose_cutoffs(counts, network.hidden, positions, network.clusters),
    )
    model = initialize(model_settings, counts, np.random.default_rng(training.seed))
    origin = Origin(
        settings=_absolute(replace(settings, training=training)),
        keys=(text.train.key, valid.key),
        coverage=text.train.coverage(text.vocabulary),
    )
    saved = SavedModel(model, text.vocabulary, text.tokenizer, origin)
    return Run(TrainingState.begin(model, training, counts), saved, text.train, valid)


def resume(
    folder: ModelFolder,
    *,
    corpus: tuple[str, ...] = (),
    valid: tuple[str, ...] = (),
    changes: Changes = Changes(),
    check: Callable[[RunSettings], None] = lambda _settings: None,
    processes: int = 1,
    stage: Stage = silent,
) -> Run:
    """Read where training stopped, and the text that it was training on; the folder is to be held.

    `corpus` and `valid` are where the texts are now, if elsewhere; `changes` replace settings of the run. `check` is
    given the settings of the run before any text is read, and may raise. Raises ModelError as `load_training` does, and
    SettingsError where the texts are gone or others, or where training is finished.
    """
    state, saved = load_training(folder)
    settings, origin = saved.origin.settings, saved.origin
    check(settings)
    changed = {name: value for name, value in vars(changes).items() if value is not None}
    training = replace(settings.training, **changed)
    saved = replace(saved, origin=replace(origin, settings=replace(settings, training=training)))
    corpora = None if corpus or valid else reopen(folder.path, *origin.keys)
    if corpora is None:
        again = replace(settings, corpus=corpus or settings.corpus, valid=valid or settings.valid)
        for given, stored in ((corpus, settings.corpus), (valid, settings.valid)):
            if not given and not all(Path(path).is_file() for path in stored):
                raise SettingsError(
                    f"{', '.join(stored)}: the text is not there any more, nor encoded in {folder.path}; give it "
                    f"again, as in rnnlm train TEXT --resume --model {shlex.quote(str(folder.path))}"
                )
        text, valid_corpus = _read_texts(folder, again, origin.keys, processes, stage)
        corpora = text.train, valid_corpus
    folder.write_history(state.history)  # a kill may have come between a line of it and the state
    over = finished(state, training)
    if over:
        raise SettingsError(f"{folder.path}: training is finished, {over}; give --epochs or --patience a higher number")
    return Run(state, saved, *corpora)


def follow(
    run: Run,
    folder: ModelFolder,
    work: Workspace,
    save_every: SaveEvery = SaveEvery(),
    *,
    stopping: Callable[[], object] = lambda: False,
    evaluating: Callable[[int], object] | None = None,
) -> Iterator[Event]:
    """Train, save the model as it goes, and yield what happens; the folder is to be held.

    After each window `stopping` is asked whether to save and stop. `evaluating` is told the number of predictions that
    an evaluation has made since its last call. Raises DivergenceError as `train` does, and ModelError where a file
    cannot be written.
    """
    state, saved, corpus, valid = run
    save_training(folder.last, state, saved)
    if not state.steps:  # only now may an older model go that this one overwrites
        folder.remove_results()
    saved_at = time.monotonic()
    try:
        for event in train(state, run.settings, corpus, valid, work, evaluating):
            notes: list[Event] = []
            if isinstance(event, Progress):
                windows, seconds = save_every.windows, save_every.seconds
                due = event.window % windows == 0 if windows else time.monotonic() - saved_at >= seconds
            else:
                notes, due = _save_evaluation(event, run, folder), True
            stop = bool(stopping())
            if due or stop:
                save_training(folder.last, state, saved)
                saved_at = time.monotonic()
            yield event  # saved before, where a saving is due: who stops listening here does not lose it
            yield from notes
            if stop:
                yield Stopped(None)
                return
    except DivergenceError as error:
        kept = f"the best model so far is kept in {folder.best}" if folder.best.exists() else "no model was kept"
        if not folder.best.exists():  # it has learned nothing: an untrained model would only mislead
            folder.last.unlink()
        raise DivergenceError(f"{error}; {kept}") from None
    yield Stopped(finished(state, run.settings))


def _save_evaluation(event: Evaluation, run: Run, folder: ModelFolder) -> list[Event]:
    """Save what an evaluation has shown: the history, the model if it is the best so far, the picture."""
    state = run.state
    folder.write_history(state.history)
    if event.improved:
        reached: dict[str, Any] = {"epoch": state.epoch, "window": state.window, "history": tuple(state.history)}
        origin = replace(run.saved.origin, valid_perplexity=event.record["valid_perplexity"], **reached)
        save_model(folder.best, replace(run.saved, origin=origin))
    if can_draw():
        draw_curve(state.history, folder.curve)
        return []
    return [NoPicture()] if len(state.history) == 1 else []


def _absolute(settings: RunSettings) -> RunSettings:
    """Return the settings with files named so that they are found from any folder: a run may be resumed elsewhere."""

    def named(paths: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(path if path == STANDARD_INPUT else str(Path(path).absolute()) for path in paths)

    words = settings.vocabulary
    words = replace(words, file=words.file and words.file.absolute())
    return replace(settings, corpus=named(settings.corpus), valid=named(settings.valid), vocabulary=words)


def _read_texts(
    folder: ModelFolder, settings: RunSettings, expected: tuple[str | None, str | None], processes: int, stage: Stage
) -> tuple[TrainingText, Corpus]:
    """Tokenize and encode the training and the validation text, or find them encoded beside the model.

    Where keys are expected, a text of another key is refused before anything is done.
    """
    if STANDARD_INPUT in settings.corpus and STANDARD_INPUT in settings.valid:
        raise SettingsError("standard input is one text; name a file for the other of CORPUS and --valid")
    with spooled(settings.corpus) as sources, spooled(settings.valid) as valid_sources:
        text = prepare(
            sources,
            folder.path,
            settings.text,
            settings.vocabulary,
            valid_fraction=0.0 if settings.valid else settings.valid_fraction,
            expected=expected[0],
            processes=processes,
            stage=stage,
        )
        if text.valid is not None:
            return text, text.valid
        valid = encode(
            valid_sources,
            folder.path,
            text.tokenizer,
            text.vocabulary,
            expected=expected[1],
            processes=processes,
            stage=stage,
        )
        return text, valid
