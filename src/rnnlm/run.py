"""Trainings from beginning to end: begin one, resume one, follow one.

    folder = ModelFolder("model")
    with working(threads=2) as work, folder.held():
        run = begin(folder, RunSettings.of("corpus.txt", {"hidden": 200}))
        for event in follow(run, folder, work):
            ...

Nothing here prints. What happens is an event, and whoever follows a run says when it shall stop. `rnnlm.train` is
all of this in one call.
"""

from __future__ import annotations

import os
import shlex
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import numpy as np

from rnnlm.checking import fit_option, flag, kinds
from rnnlm.checkpoint import ModelFolder, Origin, SavedModel, load_model, load_training, save_model, save_training
from rnnlm.clusters import choose_cutoffs
from rnnlm.corpus import Corpus, Stage, TrainingText, encode, prepare, reopen, silent
from rnnlm.curve import draw_curve
from rnnlm.defaults import choose, model_settings
from rnnlm.errors import DivergenceError, ModelError, SettingsError
from rnnlm.model import LanguageModel, Workspace, dense_size, initialize
from rnnlm.ranks import ONE, Ranks
from rnnlm.settings import SAVE_EVERY, NetworkSettings, RunSettings, SaveEvery, TrainingSettings
from rnnlm.sources import STANDARD_INPUT, spooled
from rnnlm.training import (
    Evaluation,
    Progress,
    TrainingState,
    epoch_windows,
    finished,
    train,
)

T = TypeVar("T")

CHANGEABLE = ("epochs", "patience")  # by which a resumed run may differ: they decide no step of an epoch


@contextmanager
def working(threads: int) -> Iterator[Workspace]:
    """Yield a workspace for what is `computing` until the context ends."""
    with computing(), closing(Workspace(threads)) as work:
        yield work


@contextmanager
def computing() -> Iterator[None]:
    """Let a workspace's threads share the work instead of BLAS's own, so that their number changes no result.

    Numbers that overflow warn of nothing: whoever uses them looks, and says so in a sentence.
    """
    with np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore"), _BLAS.held():
        yield


class _Blas:
    """The threads of BLAS, which are the whole process's: one as long as anybody holds them."""

    def __init__(self) -> None:
        self._lock, self._holders = threading.Lock(), 0
        self._controller: Any = None
        self._limit: Any = None

    @contextmanager
    def held(self) -> Iterator[None]:
        with self._lock:
            if self._controller is None:
                import threadpoolctl

                self._controller = threadpoolctl.ThreadpoolController()
            if not self._holders:
                self._limit = self._controller.limit(limits=1, user_api="blas")
            self._holders += 1
        try:
            yield
        finally:
            with self._lock:
                self._holders -= 1
                if not self._holders:
                    self._limit.restore_original_limits()


_BLAS = _Blas()


def stepped(steps: Generator[T]) -> Generator[T]:
    """Yield what a generator yields, which is `computing` as it makes a step and not as its caller uses it."""
    with closing(steps):
        while True:
            with computing():
                try:
                    step = next(steps)
                except StopIteration:
                    return
            yield step


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

    @property
    def parts(self) -> tuple[TrainingState, TrainingSettings, Corpus, Corpus]:
        """What `training.train` takes."""
        return self.state, self.settings, self.corpus, self.valid


@dataclass(frozen=True)
class Listener:
    """Who is told of a run beside its events, and asked."""

    stage: Stage = silent  # called when a stage of reading the texts begins
    evaluating: Callable[[int], object] | None = None  # told the predictions that an evaluation has made since it was
    stopping: Callable[[], object] = lambda: False  # asked after each window and evaluation whether to save and stop


@dataclass(frozen=True)
class Started:
    """A run has begun or is resumed; its texts are read."""

    run: Run = field(repr=False)  # it has all the weights
    resumed: bool
    ranks: int = 1  # that trained it so far; with another number, it rounds otherwise from here on


@dataclass(frozen=True)
class NoPicture:
    """The learning curve is not drawn."""

    reason: str


@dataclass(frozen=True)
class Stopped:
    """Training has ended, or was asked to stop; all of it is saved."""

    reason: str | None  # why it is over; None: it was asked to stop, and can be resumed


Event = Started | Progress | Evaluation | NoPicture | Stopped


def begin(
    folder: ModelFolder,
    settings: RunSettings,
    *,
    overwrite: bool = False,
    processes: int = 1,
    stage: Stage = silent,
    ranks: Ranks = ONE,
) -> Run:
    """Read the texts, make a new model, and save it; the folder is to be held.

    `processes` tokenize at the same time, `stage` is called when a stage of that begins. Of several `ranks` the first
    begins. Raises ModelError where the folder holds a model and `overwrite` is not set, SettingsError where there are
    more ranks than streams, and what `prepare` raises.
    """
    _check_start(folder, settings.training, overwrite, ranks)
    known = load_model(settings.initial) if settings.initial is not None else None
    if known is not None:
        settings = _of_known(settings, known)
    text, valid = _read_texts(folder, settings, (None, None), known, processes, stage)
    settings = choose(settings, text.train.predictions, len(text.vocabulary))
    training, counts = settings.training, text.vocabulary.counts
    ranks.check(min(training.batch_size or 1, text.train.sentences))
    origin = Origin(
        run=os.urandom(8).hex(),
        replaces=folder.run_to_replace(),
        settings=_absolute(settings),
        keys=(text.train.key, valid.key),
        coverage=text.train.coverage(text.vocabulary),
    )
    model = known.model if known is not None else _new_model(settings.network, training, text)
    saved = SavedModel(model, text.vocabulary, text.tokenizer, origin)
    run = Run(TrainingState.begin(model, training, counts), saved, text.train, valid)
    run.state.ranks = ranks.size
    _write(run.state, run, folder)
    return run


def _check_start(folder: ModelFolder, training: TrainingSettings, overwrite: bool, ranks: Ranks) -> None:
    """Refuse what would be found only when the texts are read."""
    if folder.holds_model() and not overwrite:
        raise ModelError(
            f"{folder.name}: holds a model already; go on training it with --resume, begin another training with its "
            "weights by --from, replace it with --overwrite, or name another folder with --model"
        )
    folder.check_places()
    if training.average_every and ranks.size == 1:
        message = "--average-every has no effect on one process; start several with mpiexec, or leave it out"
        raise SettingsError(message)


def _of_known(settings: RunSettings, known: SavedModel) -> RunSettings:
    """Return the settings of a run that begins with a model, which decides how texts become words, and the network."""
    then = known.origin.settings
    text = replace(then.text, encoding=settings.text.encoding)
    settings = replace(settings, text=text, vocabulary=then.vocabulary, network=then.network)
    settings.check_dropout()
    return settings


def _new_model(network: NetworkSettings, training: TrainingSettings, text: TrainingText) -> LanguageModel:
    """Return a model of random weights for the words of a text."""
    counts = text.vocabulary.counts
    assert training.batch_size is not None  # as `choose` has seen to
    positions = training.batch_size * (training.bptt or text.train.predictions // text.train.sentences)
    settings = model_settings(network, len(text.vocabulary))
    cutoffs = choose_cutoffs(counts, settings.units[-1], positions, network.clusters, dense_size(settings))
    return initialize(replace(settings, cutoffs=cutoffs), counts, np.random.default_rng(training.seed))


def resume(
    folder: ModelFolder,
    corpus: tuple[str, ...] = (),
    given: Mapping[str, Any] = MappingProxyType({}),
    *,
    processes: int = 1,
    stage: Stage = silent,
    ranks: Ranks = ONE,
) -> Run:
    """Read where training stopped, and the text that it was training on; the folder is to be held.

    `corpus`, and `valid` and `vocab` among the options that are `given`, are where the files are now, if elsewhere; of
    the others, those that decide no step of an epoch (CHANGEABLE) may be other than they were. Raises ModelError as
    `load_training` does, and SettingsError where another option is not what it was, the texts are gone or others, or
    where training is finished.
    """
    folder.check_places()
    state, saved = load_training(folder)
    settings, origin = saved.origin.settings, saved.origin
    valid: tuple[str, ...] = fit_option(tuple[str, ...], given.get("valid", ()), "valid")
    vocab = fit_option(Path | None, given.get("vocab"), "vocab")
    changes = _changes(origin, given)
    training = replace(settings.training, **changes)
    said = {*changes, "decay_from", "lr_decay"} if "epochs" in changes else set(changes)  # chosen by other epochs
    chosen = tuple(name for name in settings.chosen if name not in said)
    saved = replace(saved, origin=replace(origin, settings=replace(settings, training=training, chosen=chosen)))
    corpora = None if corpus or valid or vocab else reopen(folder.path, *origin.keys, saved.vocabulary)
    corpora = corpora or _read_again(folder, saved, corpus, valid, vocab, processes, stage)
    ranks.check(min(training.batch_size or 1, corpora[0].sentences))
    if state.window and state.window > len(epoch_windows(state, training, corpora[0])):
        raise ModelError(f"{folder.name}: is damaged: the training does not fit its text; train again with --overwrite")
    over = finished(state, training)
    if over:
        option = "--patience" if state.poor_epochs >= training.patience else "--epochs"
        raise SettingsError(f"{folder.name}: training is finished, {over}; give {option} a higher number")
    if state.history:
        folder.write_history(origin.run, state.history)  # a kill may have come between a line of it and the state
    return Run(state, saved, *corpora)


def _read_again(
    folder: ModelFolder,
    saved: SavedModel,
    corpus: tuple[str, ...],
    valid: tuple[str, ...],
    vocab: Path | None,
    processes: int,
    stage: Stage,
) -> tuple[Corpus, Corpus]:
    """Read the texts of a run where they were, or where they are said to be now, and encode them as they were."""
    settings, origin = saved.origin.settings, saved.origin
    for texts in (corpus or settings.corpus, valid or settings.valid):
        if texts not in (corpus, valid) and not all(Path(path).is_file() for path in texts):
            what = "TEXT" if texts == settings.corpus else "--valid TEXT"
            nor = "and texts are read again where one is named" if corpus or valid else f"nor encoded in {folder.name}"
            raise SettingsError(
                f"{', '.join(texts)}: the text is not there any more, {nor}; give it again, as in "
                f"rnnlm train {what} --resume --model {shlex.quote(str(folder.name))}"
            )
    words = replace(settings.vocabulary, vocab=vocab or settings.vocabulary.vocab)
    again = replace(settings, corpus=corpus or settings.corpus, valid=valid or settings.valid, vocabulary=words)
    known = saved if settings.initial is not None else None
    text, validation = _read_texts(folder, again, origin.keys, known, processes, stage)
    if text.vocabulary != saved.vocabulary:
        message = "is damaged: its words are not those of its text; train again with --overwrite"
        raise ModelError(f"{folder.name}: {message}")
    return text.train, validation


def _changes(origin: Origin, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what may change of the options that are given; raises SettingsError where another one does."""
    changes = {}
    for name, value in given.items():
        if name in CHANGEABLE:
            changes[name] = value
            continue
        if (name == "valid" and origin.settings.valid) or (name == "vocab" and origin.settings.vocabulary.vocab):
            continue  # where the file is now
        groups = (origin.settings, *(getattr(origin.settings, group) for group in RunSettings.groups()))
        owner = next((group for group in groups if name in {item.name for item in fields(group)}), None)
        if owner is None:
            raise SettingsError(f"there is no option {name!r}; rnnlm train --help lists them")
        before, now = getattr(owner, name), fit_option(kinds(type(owner))[name], value, name)
        now = now.absolute() if isinstance(now, Path) else now
        given_as_none = value is None and getattr(type(owner), name, None) is None  # else None is a value, too
        if now != before and not given_as_none:
            was = "not given" if before in (None, ()) else before
            was = f"not given ({before})" if name in origin.settings.chosen else was
            now = " ".join(now) if isinstance(now, tuple) else now
            message = f"{flag(name)} is {now} here and was {was} when this training began"
            raise SettingsError(f"{message}; leave it out to resume, or train anew with --overwrite")
    return changes


def follow(
    run: Run,
    folder: ModelFolder,
    work: Workspace,
    save_every: SaveEvery = SAVE_EVERY,
    listener: Listener = Listener(),
    ranks: Ranks = ONE,
) -> Generator[Event]:
    """Train, save the model as it goes, and yield what happens; the folder is to be held.

    Of several `ranks` each follows, the first writes, and when one is told to stop all do.
    Raises DivergenceError as `train` does, and ModelError where a file cannot be written.
    """
    unknown_id, due, stop = run.saved.vocabulary.unknown_id, False, False
    saved_at = time.monotonic()
    try:
        for event in train(*run.parts, work, listener.evaluating, unknown_id, ranks):
            notes: list[Event] = []
            if isinstance(event, Progress):
                due = due or (ranks.rank == 0 and save_every.due(event.window, saved_at))  # one clock decides
            else:
                notes, due = ranks.first(partial(_save_evaluation, event, run, folder)), True
            due, stop = ranks.agree(due, stop or bool(listener.stopping()))
            together = not (isinstance(event, Progress) and event.apart)  # else it waits until ranks have one model
            if together and (due or stop):
                _save(run, folder, ranks)
                saved_at, due = time.monotonic(), False
            yield event  # saved before, where a saving is due: who stops listening here does not lose it
            yield from notes
            if together and stop and not finished(run.state, run.settings):
                yield Stopped(None)
                return
    except GeneratorExit:  # nobody listens any more; the state is one between two windows
        if ranks.size == 1 and not folder.is_forked():  # of several, others may be in the middle of one
            _save(run, folder, ranks)
        raise
    except DivergenceError as error:
        raise DivergenceError(f"{error}; {_what_is_kept(run, folder)}") from None
    yield Stopped(finished(run.state, run.settings))


def _what_is_kept(run: Run, folder: ModelFolder) -> str:
    """Say what is left of a run that has diverged; a model that has learned nothing would only mislead, and goes."""
    if run.state.history:
        return f"the best model so far is kept in {folder.name / 'best.npz'}"
    folder.new.unlink(missing_ok=True)
    return f"the older model in {folder.name} is kept" if folder.holds_model() else "no model was kept"


def _save(run: Run, folder: ModelFolder, ranks: Ranks) -> None:
    """Save where training stands, with the states of all ranks' streams. The time that it takes goes on its clock."""
    states = ranks.gather(run.state.states)
    state = replace(run.state, states=states) if ranks.size > 1 else run.state
    began = time.perf_counter()
    ranks.first(lambda: _write(state, run, folder))
    run.state.seconds += time.perf_counter() - began


def _write(state: TrainingState, run: Run, folder: ModelFolder) -> None:
    """Write where training stands, until the first evaluation beside an older model's files, then in their place."""
    folder.check_held()
    save_training(folder.last if state.history else folder.new, state, run.saved)
    if state.history:
        folder.new.unlink(missing_ok=True)


def _save_evaluation(event: Evaluation, run: Run, folder: ModelFolder) -> list[Event]:
    """Save what an evaluation has shown: the model if it is the best so far, the history, the picture."""
    folder.check_held()
    state, began = run.state, time.perf_counter()
    history = tuple(state.history)
    if event.improved:
        perplexity = event.record.valid_perplexity
        origin = replace(
            run.saved.origin, valid_perplexity=perplexity, epoch=state.epoch, window=state.window, history=history
        )
        save_model(folder.best, replace(run.saved, model=state.result, origin=origin))
    folder.write_history(run.saved.origin.run, state.history)
    state.seconds += time.perf_counter() - began
    problem = draw_curve(history, folder.curve)
    return [NoPicture(problem)] if problem and len(history) == 1 else []


def _absolute(settings: RunSettings) -> RunSettings:
    """Return the settings with files named so that they are found from any folder: a run may be resumed elsewhere."""

    def named(paths: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(path if path == STANDARD_INPUT else str(Path(path).absolute()) for path in paths)

    vocab, initial = settings.vocabulary.vocab, settings.initial
    return replace(
        settings,
        corpus=named(settings.corpus),
        valid=named(settings.valid),
        vocabulary=replace(settings.vocabulary, vocab=vocab and vocab.absolute()),
        initial=initial and str(Path(initial).absolute()),
    )


def _read_texts(
    folder: ModelFolder,
    settings: RunSettings,
    expected: tuple[str | None, str | None],
    known: SavedModel | None,
    processes: int,
    stage: Stage,
) -> tuple[TrainingText, Corpus]:
    """Tokenize and encode the training and the validation text, or find them encoded beside the model.

    Where keys are expected, a text of another key is refused before anything is done. Where a model is known, its
    tokenizer and its vocabulary are used.
    """
    words = (replace(known.tokenizer, settings=settings.text), known.vocabulary) if known else None
    how: dict[str, Any] = {"processes": processes, "stage": stage}
    with spooled(settings.corpus) as sources, spooled(settings.valid) as valid_sources:
        text = prepare(
            sources,
            folder.path,
            settings.text,
            settings.vocabulary,
            known=words,
            valid_fraction=0.0 if settings.valid else settings.valid_fraction,
            expected=expected[0],
            **how,
        )
        if text.valid is not None:
            return text, text.valid
        return text, encode(valid_sources, folder.path, text.tokenizer, text.vocabulary, expected=expected[1], **how)
