"""The training loop: a generator of events that prints nothing and writes no file.

All that a run has become is in its `TrainingState`. Whoever consumes the events may save the state at any of them; a
loop that starts from a saved state takes the same steps, to the last bit, as one that was never stopped: each epoch's
order of sentences follows from the seed and the epoch's number alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np

from rnnlm.batches import Windows, windows
from rnnlm.checking import Checked, Unfit, flag
from rnnlm.corpus import Corpus
from rnnlm.defaults import rule
from rnnlm.errors import DivergenceError, counted
from rnnlm.model import (
    DECAY_STEPS,
    IGNORED,
    NO_MASKS,
    Array,
    Dropout,
    LanguageModel,
    Masks,
    Optimizer,
    Parameters,
    Workspace,
    average,
    draw_masks,
    joint_norm,
)
from rnnlm.ranks import ONE, Ranks
from rnnlm.scoring import Score, perplexity
from rnnlm.settings import Count, Natural, NotNegative, Perplexity, Positive, TrainingSettings

AVERAGE_STEPS = DECAY_STEPS  # steps from one that enters the average of weights to the next: no decay is owed then
FADING = 4  # the average's weights grow as the fourth power of the step: the last fifth of all has two thirds of it
WORSE = 1.003  # the factor by which a perplexity has risen, or fallen, and is not merely another
RECENT = 50  # windows over which the loss is averaged before it is called divergent


def dropout(settings: TrainingSettings) -> Dropout:
    """Return the rates of dropout, each the one rate for all unless it has one of its own."""
    own = (settings.dropout_input, settings.dropout_hidden, settings.dropout_output)
    inputs, hidden, outputs = (settings.dropout if rate is None else rate for rate in own)
    return Dropout(inputs, hidden, outputs, settings.dropout_weights)


def make_optimizer(settings: TrainingSettings, model: LanguageModel, counts: Array) -> Optimizer:
    """Make the optimizer of a run; `counts` (V,) says how often each word occurs in training."""
    power, weight_decay = settings.rate_power or 0.0, settings.weight_decay
    return Optimizer(rule(settings), model.parameters, model.settings, counts, settings.momentum, power, weight_decay)


@dataclass(frozen=True)
class Record(Checked):
    """An evaluation, as a line of history.jsonl has it."""

    epoch: Count
    window: Natural  # windows of this epoch that were done
    running_perplexity: Positive  # over this epoch's training text so far, with dropout, as the weights then were
    train_perplexity: Positive | None  # without dropout, over a part of the training text; None: within an epoch
    valid_perplexity: Positive  # over the validation text
    valid_perplexity_excluding_unknown: Positive | None  # over its predictions of known words; None: it has none
    learning_rate: NotNegative  # of the steps before
    seconds: NotNegative  # on the training clock
    words_per_second: Natural


@dataclass
class TrainingState(Checked):
    """Where a run stands: everything that decides what it does next. The constructor raises Unfit as `Checked` does."""

    model: LanguageModel
    optimizer: Optimizer
    learning_rate: NotNegative
    epoch: Count = 1
    window: Natural = 0  # the next window of this epoch
    states: Array | None = None  # (L, M, B, H) before that window, of this rank's streams; None at an epoch's start
    average: Parameters | None = None  # of weights, from the first AVERAGE_STEPS on if it is asked for
    steps: Natural = 0  # since the very beginning
    evaluated: bool = False  # whether the evaluation due at this window is done
    epoch_done: bool = False  # whether that was the last of this epoch
    decaying: bool = False  # whether the learning rate has begun to fall
    poor_epochs: Natural = 0  # in a row, without a sufficient improvement on the best
    best_perplexity: Perplexity = math.inf  # of all evaluations
    best_epoch_perplexity: Perplexity = math.inf  # of those at the end of an epoch
    last_epoch_perplexity: Perplexity = math.inf
    loss_sum: NotNegative = 0.0  # over this epoch
    predictions: Natural = 0  # in this epoch
    first_loss: NotNegative | None = None  # of the very first window
    recent_loss: NotNegative = 0.0  # running mean over about RECENT windows
    ranks: Count = 1  # processes that share the streams
    seconds: NotNegative = 0.0  # on the training clock: windows, evaluations and, added by who saves, savings
    epoch_seconds: NotNegative = 0.0  # in this epoch's windows alone
    history: list[Record] = field(default_factory=list)

    def check(self) -> None:
        """Raise Unfit where numbers contradict each other."""
        if (self.window > 0) != (self.predictions > 0):
            raise Unfit("predictions", self.predictions, "what the windows of this epoch had")
        best = min((record.valid_perplexity for record in self.history), default=math.inf)
        if self.best_perplexity != best:
            raise Unfit("best_perplexity", self.best_perplexity, "the lowest of the history")
        if (self.first_loss is None) != (self.steps == 0):
            raise Unfit("first_loss", self.first_loss, "a loss after the first step, and none before it")

    @property
    def result(self) -> LanguageModel:
        """The model that is evaluated, and kept where it is the best: of averaged weights, if there are any."""
        return self.model if self.average is None else replace(self.model, parameters=self.average)

    @property
    def running_perplexity(self) -> float:
        """The perplexity over this epoch so far, with dropout."""
        return math.exp(min(self.loss_sum / self.predictions, 700))

    @classmethod
    def begin(cls, model: LanguageModel, settings: TrainingSettings, counts: Array) -> TrainingState:
        """Return the state before the first window; `counts` (V,) says how often each word occurs in training."""
        assert settings.lr is not None  # as `choose` has seen to
        return cls(model, make_optimizer(settings, model, counts), settings.lr)

    def to_json(self) -> dict[str, Any]:
        """Return all but the arrays."""
        arrays = {"model", "optimizer", "states", "average", "history"}
        numbers = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in arrays}
        return {**numbers, "history": [asdict(record) for record in self.history]}


@dataclass(frozen=True)
class Progress:
    """A window has been trained on."""

    epoch: int
    window: int  # windows of this epoch that are done
    windows: int  # windows in this epoch
    predictions: int  # in this window
    perplexity: float  # over this epoch so far
    apart: bool = False  # whether each rank has weights of its own, which are no model until their mean is taken


@dataclass(frozen=True)
class Evaluation:
    """The model has been evaluated on the validation text."""

    record: Record
    windows: int  # windows in this epoch
    improved: bool  # whether this is the best model so far
    epoch_done: bool
    overfitting: bool  # whether the training perplexity has fallen in this epoch, and that of validation risen


def train(
    state: TrainingState,
    settings: TrainingSettings,
    corpus: Corpus,
    valid: Corpus,
    work: Workspace,
    evaluating: Callable[[int], object] | None = None,
    unknown_id: int | None = None,
    ranks: Ranks = ONE,
) -> Iterator[Progress | Evaluation]:
    """Train `state.model` on `corpus`, and yield an event after each window and after each evaluation on `valid`.

    `evaluating` is told the number of predictions that an evaluation has made since its last call; `unknown_id` is that
    of `<unk>`, if unknown words are to be told apart. At the end of an epoch the first part of the training text, as
    long as `valid`, is evaluated too. Each of several `ranks` trains so, and all see the same events.

    Ends when `finished` says so. Raises DivergenceError when the loss is no longer a number, or many windows have ten
    times the perplexity of the first and are worse than an even guess; the state is that before the offending step.
    """
    while not finished(state, settings):
        epoch = _enter_epoch(state, settings, corpus, ranks)
        while True:
            at_end = state.window == len(epoch)
            if (at_end or _at_interval(state, settings)) and not state.evaluated:
                began = time.perf_counter()
                state.optimizer.decay(state.model.parameters, work)
                score = perplexity(state.result, valid, work, unknown_id=unknown_id, progress=evaluating, ranks=ranks)
                known = _train_perplexity(state, corpus, valid, work, epoch.streams, ranks) if at_end else None
                improved = _evaluated(state, settings, score, known, time.perf_counter() - began)
                worse = at_end and overfitting(state.history)
                yield Evaluation(state.history[-1], len(epoch), improved, at_end, worse)
            if at_end:
                break
            predictions = _train_window(state, settings, epoch, work, ranks)
            state.window += 1
            state.evaluated = False
            apart = _averaged(state, settings, len(epoch), work, ranks)
            yield Progress(state.epoch, state.window, len(epoch), predictions, state.running_perplexity, apart)
        if not finished(state, settings):
            _begin_epoch(state)


def _at_interval(state: TrainingState, settings: TrainingSettings) -> bool:
    """Say whether an evaluation is due within an epoch, after so many of its windows."""
    return settings.eval_every > 0 and state.window > 0 and state.window % settings.eval_every == 0


def _enter_epoch(state: TrainingState, settings: TrainingSettings, corpus: Corpus, ranks: Ranks) -> Windows:
    """Return the windows of an epoch, of this rank's streams, which begin with a state."""
    epoch = epoch_windows(state, settings, corpus)
    epoch.columns = ranks.columns(epoch.streams)
    if state.states is None:
        state.states = state.model.start(epoch.columns.stop - epoch.columns.start)
    return epoch


def epoch_windows(state: TrainingState, settings: TrainingSettings, corpus: Corpus) -> Windows:
    """Return the windows of the epoch that a run is in."""
    order = np.random.default_rng([settings.seed, state.epoch])
    assert settings.batch_size is not None  # as `choose` has seen to
    return windows(corpus, settings.batch_size, settings.bptt, order, state.model.settings.carry_state)


def finished(state: TrainingState, settings: TrainingSettings) -> str | None:
    """Say why training is over, or return None when it is not."""
    if (state.epoch_done or state.window == 0) and state.poor_epochs >= settings.patience:
        epochs = counted(state.poor_epochs, "epoch")
        return f"validation perplexity has not improved by {100 * settings.min_improvement:.3g}% for {epochs}"
    done = state.epoch if state.epoch_done else state.epoch - 1
    return f"{counted(done, 'epoch')} done" if done >= settings.epochs else None


def _train_window(
    state: TrainingState, settings: TrainingSettings, epoch: Windows, work: Workspace, ranks: Ranks
) -> int:
    """Take one step. Returns the number of predictions in the window, of all ranks."""
    began = time.perf_counter()
    model, predictions = state.model, epoch.predictions(state.window)
    inputs, targets = epoch[state.window]
    assert state.states is not None  # `train` has seen to it
    masks = _window_masks(state, settings, len(targets), epoch)
    predicted = targets != IGNORED
    alone = settings.average_every > 0  # whether this rank steps by itself, along the mean of its own losses
    over = max(1, int(np.count_nonzero(predicted))) if alone else predictions
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is reported as divergence, in a sentence
        (losses, states), backward = model.losses(inputs, targets, state.states, work, masks)
        loss, gradients = float(np.sum(losses, dtype=np.float64)), backward(predicted / over)
        if alone:
            norm = joint_norm(gradients, work)
            loss, norms = ranks.totals(loss, norm)
        else:
            gradients, loss, norm = ranks.sum(model.parameters, gradients, loss, work)
            norms = norm
    loss /= predictions
    _check_convergence(state, settings, loss, norms)
    shrink = settings.clip / norm if 0 < settings.clip < norm else 1.0
    rate = state.optimizer.rate(state.learning_rate, over)
    state.steps += 1
    state.optimizer.step(model.parameters, gradients, rate, work, shrink=shrink, time=state.steps)
    if settings.average and state.steps % AVERAGE_STEPS == 0:
        _average(state, work)
    state.states = states
    state.loss_sum += loss * predictions
    state.predictions += predictions
    seconds = time.perf_counter() - began
    state.epoch_seconds += seconds
    state.seconds += seconds
    return predictions


def _averaged(state: TrainingState, settings: TrainingSettings, windows: int, work: Workspace, ranks: Ranks) -> bool:
    """Put the ranks' mean in the place of what each has by itself, if that is due; say whether it is not yet."""
    if not settings.average_every or ranks.size == 1:
        return False
    if state.window % settings.average_every and state.window < windows and not _at_interval(state, settings):
        return True
    began = time.perf_counter()
    state.optimizer.decay(state.model.parameters, work)  # what is owed is each rank's own
    memory = [array for kept in state.optimizer.memory.values() for array in kept.values()]
    ranks.average([*state.model.parameters.values(), *memory, *(state.average or {}).values()], work)
    seconds = time.perf_counter() - began
    state.epoch_seconds += seconds
    state.seconds += seconds
    return False


def _window_masks(state: TrainingState, settings: TrainingSettings, steps: int, epoch: Windows) -> Masks:
    """Draw the masks of a window, whose generator is its own, so that a resumed run draws the same.

    Those of all streams are drawn, and this rank's are kept: so their number changes no mask.
    """
    rates, of_states = dropout(settings), settings.dropout_state
    if rates == Dropout() and not of_states:
        return NO_MASKS
    generator = np.random.default_rng([settings.seed, state.epoch, state.window + 1])  # 0 is as if it were not there
    masks = draw_masks(state.model.settings, epoch.streams, rates, generator, np.float32)
    masks = {name: mask if name.startswith("W") else mask[epoch.columns] for name, mask in masks.items()}
    if not of_states:
        return masks
    return {**masks, "keep": (generator.random((steps, epoch.streams)) >= of_states)[:, epoch.columns]}


def _average(state: TrainingState, work: Workspace) -> None:
    """Let the weights enter their average, of which early ones fade (Shamir and Zhang 2013, polynomial decay)."""
    parameters, count = state.model.parameters, state.steps // AVERAGE_STEPS
    if state.average is None:
        state.average = {name: value.copy() for name, value in parameters.items()}
    else:
        average(state.average, parameters, (FADING + 1) / (FADING + count), work)


def _check_convergence(state: TrainingState, settings: TrainingSettings, loss: float, norm: float) -> None:
    first = loss if state.first_loss is None else state.first_loss
    before = loss if state.first_loss is None else state.recent_loss
    recent = before + (loss - before) / RECENT
    words = state.model.settings.words  # a model that is trained on may begin with a window that it knows well
    if not math.isfinite(loss + norm):
        what = "the loss or its gradient is no longer a number"
    elif recent > max(first + math.log(10), math.log(words)):
        what = f"perplexity has risen from {math.exp(min(first, 700)):.0f} to over ten times that"
    else:
        state.first_loss, state.recent_loss = first, recent
        return
    raise _divergence(state, settings, what)


def _divergence(state: TrainingState, settings: TrainingSettings, what: str) -> DivergenceError:
    lower = {"lr": settings.lr or state.learning_rate, "batch_size": settings.batch_size, "clip": settings.clip}
    lower |= settings.dropout_in_force(state.model.settings.layers)
    remedies = [f"{flag(name)} (now {value:g})" for name, value in lower.items() if value]
    clipping = "" if settings.clip else ", or give --clip 5"
    return DivergenceError(
        f"training has diverged in epoch {state.epoch} at window {state.window}, as {what}: "
        f"lower {', '.join(remedies[:-1])} or {remedies[-1]}{clipping}, and train again"
    )


def overfitting(history: Sequence[Record]) -> bool:
    """Say whether the perplexity in validation has risen, and that in training fallen, since the epoch before."""
    epochs = [record for record in history if record.train_perplexity is not None]
    if len(epochs) < 2:
        return False
    before, now = epochs[-2:]
    assert before.train_perplexity is not None
    assert now.train_perplexity is not None
    learned = now.train_perplexity < before.train_perplexity / WORSE
    return learned and now.valid_perplexity > before.valid_perplexity * WORSE


def _train_perplexity(
    state: TrainingState, corpus: Corpus, valid: Corpus, work: Workspace, streams: int, ranks: Ranks
) -> float:
    """Return the perplexity on the beginning of the training text, read by as many streams as in training."""
    part = corpus.beginning(valid.predictions)
    return perplexity(state.result, part, work, streams=streams, ranks=ranks).perplexity


def _evaluated(
    state: TrainingState, settings: TrainingSettings, score: Score, train_perplexity: float | None, seconds: float
) -> bool:
    """Record perplexities; at an epoch's end patience and the rate follow them. Says whether the model is the best.

    `train_perplexity` is None within an epoch.
    """
    at_end = train_perplexity is not None
    value, known = score.perplexity, score.perplexity_excluding_unknown
    figures = np.array([value, train_perplexity or 0.0])
    if not all(np.isfinite(array).all() for array in (figures, *state.result.parameters.values())):
        raise _divergence(state, settings, "the model, or its perplexity, is no longer a number")
    improved = value < state.best_perplexity
    state.seconds += seconds
    state.history.append(
        Record(
            epoch=state.epoch,
            window=state.window,
            running_perplexity=state.running_perplexity,
            train_perplexity=train_perplexity,
            valid_perplexity=value,
            valid_perplexity_excluding_unknown=known if math.isfinite(known) else None,
            learning_rate=state.learning_rate,
            seconds=round(state.seconds, 3),
            words_per_second=round(state.predictions / max(state.epoch_seconds, 1e-9)),
        )
    )
    if at_end:
        _end_epoch(state, settings, value)
    state.best_perplexity = min(value, state.best_perplexity)
    state.evaluated, state.epoch_done = True, at_end
    return improved


def _end_epoch(state: TrainingState, settings: TrainingSettings, value: float) -> None:
    """Let patience and the learning rate follow an epoch's validation perplexity."""
    sufficient = 1 - settings.min_improvement
    moved = value != state.last_epoch_perplexity  # the average of a very short text may not have
    if value < state.best_epoch_perplexity * sufficient or state.epoch < settings.decay_from:
        state.poor_epochs = 0  # a rate that is still to fall will improve it
    elif moved:
        state.poor_epochs += 1
    poor = moved and not value < state.last_epoch_perplexity * sufficient
    due = state.epoch >= settings.decay_from if settings.decay_from else poor
    state.decaying = state.decaying or due
    if state.decaying:
        state.learning_rate /= settings.lr_decay
    state.last_epoch_perplexity = value
    state.best_epoch_perplexity = min(value, state.best_epoch_perplexity)


def _begin_epoch(state: TrainingState) -> None:
    state.epoch += 1
    state.window = 0
    state.states = None
    state.evaluated = state.epoch_done = False
    state.loss_sum = state.epoch_seconds = 0.0
    state.predictions = 0
