"""The training loop: a generator of events that prints nothing and writes no file.

All that a run has become is in its `TrainingState`. Whoever consumes the events may save the state at any of them; a
loop that starts from a saved state takes the same steps, to the last bit, as one that was never stopped: each epoch's
order of sentences follows from the seed and the epoch's number alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from rnnlm.batches import windows
from rnnlm.corpus import Corpus
from rnnlm.errors import DivergenceError, SettingsError
from rnnlm.model import RULES, Array, Dropout, LanguageModel, Optimizer, Workspace, joint_norm, mean_weights
from rnnlm.scoring import perplexity

RECENT = 50  # windows over which the loss is averaged before it is called divergent


@dataclass(frozen=True)
class TrainingSettings:
    """How a model is trained."""

    window: int = 35  # T, steps in a window; 0: a window is a sentence of each stream
    streams: int = 0  # B, sequences that advance side by side; 0: by the size of the text, `default_streams`
    optimizer: str = "sgd"  # a key of RULES
    learning_rate: float | None = None  # of sgd, for the sum over a window's positions; None: its rule's
    rate_power: float = 0.5  # rows of U, V and c learn at p(word)^-power; 0: all at the same rate
    momentum: float = 0.0
    dropout: float = 0.0  # share of the inputs' and outputs' numbers that are zeroed at each step
    weight_decay: float = 0.0  # of half the squared norm of U and V, beside the mean loss
    clip: float = 5.0  # greatest joint norm of the gradients of the mean loss; 0: none
    epochs: int = 20
    eval_every: int = 0  # windows between evaluations, beside the one after each epoch; 0: none
    min_improvement: float = 0.003  # share by which an epoch must lower the perplexity, or the rate begins to fall
    lr_decay: float = 2.0  # what the rate is divided by after each epoch from then on
    patience: int = 3  # epochs in a row without that improvement on the best, after which training stops
    seed: int = 1

    def __post_init__(self) -> None:
        """Raise SettingsError where settings contradict each other, before any text is read in vain."""
        if self.momentum and self.optimizer != "sgd":
            raise SettingsError(f"--momentum goes with --optimizer sgd, not {self.optimizer}; leave one of them out")

    @property
    def kind(self) -> str:
        """The key of the optimizer's rule."""
        return "momentum" if self.optimizer == "sgd" and self.momentum else self.optimizer

    @property
    def first_rate(self) -> float:
        """The learning rate to begin with: the one asked for, or the rule's."""
        return self.learning_rate or RULES[self.kind].learning_rate

    def resolved(self, predictions: int) -> TrainingSettings:
        """Return the settings with what a text of so many predictions decides put in, and the rule's learning rate."""
        streams = self.streams or default_streams(predictions, self.window)
        return replace(self, streams=streams, learning_rate=self.first_rate)


def default_streams(predictions: int, window: int) -> int:
    """Choose B for a text: as many as leave 200 steps of SGD in an epoch, from 8 to 64.

    More streams make a step cheaper for each word, and fewer, longer steps. Beyond 64 products get hardly quicker, and
    with 256 the steps are too long.
    """
    return max(8, min(64, predictions // (200 * (window or 20))))


def make_optimizer(settings: TrainingSettings, model: LanguageModel, counts: Array) -> Optimizer:
    """Make the optimizer of a run; `counts` (V,) says how often each word occurs in training."""
    power, weight_decay = settings.rate_power, settings.weight_decay
    return Optimizer(settings.kind, model.parameters, model.settings, counts, settings.momentum, power, weight_decay)


@dataclass
class TrainingState:
    """Where a run stands: everything that decides what it does next."""

    model: LanguageModel
    optimizer: Optimizer
    learning_rate: float
    epoch: int = 1
    window: int = 0  # the next window of this epoch
    states: Array | None = None  # (L, M, B, H) before that window; None at an epoch's start
    steps: int = 0  # since the very beginning
    evaluated: bool = False  # whether the evaluation due at this window is done
    epoch_done: bool = False  # whether that was the last of this epoch
    decaying: bool = False  # whether the learning rate has begun to fall
    poor_epochs: int = 0  # in a row, without a sufficient improvement on the best
    best_perplexity: float = math.inf  # of all evaluations
    best_epoch_perplexity: float = math.inf  # of those at the end of an epoch
    last_epoch_perplexity: float = math.inf
    loss_sum: float = 0.0  # over this epoch
    predictions: int = 0  # in this epoch
    first_loss: float = math.nan  # of the very first window
    recent_loss: float = math.nan  # running mean over about RECENT windows
    seconds: float = 0.0  # on the training clock: from the first window, evaluations and savings included
    epoch_seconds: float = 0.0  # in this epoch's windows alone
    history: list[dict[str, Any]] = field(default_factory=list)  # a record for each evaluation

    @classmethod
    def begin(cls, model: LanguageModel, settings: TrainingSettings, counts: Array) -> TrainingState:
        """Return the state before the first window; `counts` (V,) says how often each word occurs in training."""
        return cls(model, make_optimizer(settings, model, counts), settings.first_rate)

    def to_json(self) -> dict[str, Any]:
        """Return all but the arrays."""
        arrays = {"model", "optimizer", "states"}
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name not in arrays}


@dataclass(frozen=True)
class Progress:
    """A window has been trained on."""

    epoch: int
    window: int  # windows of this epoch that are done
    windows: int  # windows in this epoch
    predictions: int  # in this window
    perplexity: float  # over this epoch so far


@dataclass(frozen=True)
class Evaluation:
    """The model has been evaluated on the validation text."""

    record: dict[str, Any]  # the line of history.jsonl
    improved: bool  # whether this is the best model so far
    epoch_done: bool


def train(
    state: TrainingState,
    settings: TrainingSettings,
    corpus: Corpus,
    valid: Corpus,
    work: Workspace,
    evaluating: Callable[[int], object] | None = None,
) -> Iterator[Progress | Evaluation]:
    """Train `state.model` on `corpus`, and yield an event after each window and after each evaluation on `valid`.

    `evaluating` is told the number of predictions that an evaluation has made since its last call.

    Ends when `finished` says so. Raises DivergenceError when the loss is no longer a number, or ten times as perplexed
    over many windows as at the first one; the state is then that before the offending step.
    """
    begin = time.perf_counter() - state.seconds
    while not finished(state, settings):
        order = np.random.default_rng([settings.seed, state.epoch])
        carry_state = state.model.settings.carry_state
        epoch = windows(corpus, settings.streams, settings.window, order, carry_state)
        if state.states is None:
            state.states = state.model.start(epoch.streams)
        while True:
            at_end = state.window == len(epoch)
            at_interval = settings.eval_every > 0 and state.window > 0 and state.window % settings.eval_every == 0
            if (at_end or at_interval) and not state.evaluated:
                state.optimizer.decay(state.model.parameters, work)
                value = perplexity(state.model, valid, work, progress=evaluating).perplexity
                improved = _evaluated(state, settings, value, begin, at_end)
                yield Evaluation(state.history[-1], improved, at_end)
            if at_end:
                break
            predictions = _train_window(state, settings, *epoch[state.window], work)
            state.window += 1
            state.evaluated = False
            state.seconds = time.perf_counter() - begin
            mean_loss = state.loss_sum / state.predictions
            yield Progress(state.epoch, state.window, len(epoch), predictions, math.exp(min(mean_loss, 700)))
        if not finished(state, settings):
            _begin_epoch(state)


def finished(state: TrainingState, settings: TrainingSettings) -> str | None:
    """Say why training is over, or return None when it is not."""
    if (state.epoch_done or state.window == 0) and state.poor_epochs >= settings.patience:
        return f"validation has not improved by {settings.min_improvement:.1%} for {state.poor_epochs} epochs"
    done = state.epoch if state.epoch_done else state.epoch - 1
    return f"{done} epochs are done" if done >= settings.epochs else None


def _train_window(
    state: TrainingState, settings: TrainingSettings, inputs: Array, targets: Array, work: Workspace
) -> int:
    """Take one step of SGD. Returns the number of predictions in the window."""
    began = time.perf_counter()
    model = state.model
    assert state.states is not None  # `train` has seen to it
    dropout = None
    if settings.dropout:  # a generator of its own for each window, so that a resumed run draws the same zeros
        generator = np.random.default_rng([settings.seed, state.epoch, state.window])
        dropout = Dropout(settings.dropout, generator)
    weights = mean_weights(targets)
    predictions = int(np.count_nonzero(weights))
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is reported as divergence, in a sentence
        (losses, states), backward = model.losses(inputs, targets, state.states, work, dropout)
        loss = float(np.sum(losses, dtype=np.float64)) / predictions
        gradients = backward(weights)
        norm = joint_norm(gradients, work)
    _check_convergence(state, loss, norm)
    shrink = settings.clip / norm if 0 < settings.clip < norm else 1.0
    rate = state.optimizer.rate(state.learning_rate, predictions)
    state.steps += 1
    state.optimizer.step(model.parameters, gradients, rate, work, shrink=shrink, time=state.steps)
    state.states = states
    state.loss_sum += loss * predictions
    state.predictions += predictions
    state.epoch_seconds += time.perf_counter() - began
    return predictions


def _check_convergence(state: TrainingState, loss: float, norm: float) -> None:
    if math.isnan(state.first_loss):
        state.first_loss = state.recent_loss = loss
    recent = state.recent_loss + (loss - state.recent_loss) / RECENT
    if not math.isfinite(loss + norm):
        what = "the loss or its gradient is no longer a number"
    elif recent > state.first_loss + math.log(10):
        what = f"perplexity has risen from {math.exp(state.first_loss):.0f} to over ten times that"
    else:
        state.recent_loss = recent
        return
    raise _divergence(state, what)


def _divergence(state: TrainingState, what: str) -> DivergenceError:
    return DivergenceError(
        f"Training has diverged in epoch {state.epoch} at window {state.window}: {what}; "
        f"lower --lr (now {state.learning_rate:g}), --dropout or --clip and train again with --overwrite"
    )


def _evaluated(state: TrainingState, settings: TrainingSettings, value: float, begin: float, at_end: bool) -> bool:
    """Record a perplexity, and let the learning rate follow at an epoch's end. Says whether it is the best."""
    if not math.isfinite(value):
        raise _divergence(state, "the validation perplexity is no longer a number")
    improved = value < state.best_perplexity
    sufficient = 1 - settings.min_improvement
    state.seconds = time.perf_counter() - begin
    state.history.append(
        {
            "epoch": state.epoch,
            "window": state.window,
            "train_perplexity": math.exp(min(state.loss_sum / state.predictions, 700)),
            "valid_perplexity": value,
            "learning_rate": state.learning_rate,
            "seconds": round(state.seconds, 3),
            "words_per_second": round(state.predictions / state.epoch_seconds),
        }
    )
    if at_end:
        state.poor_epochs = 0 if value < state.best_epoch_perplexity * sufficient else state.poor_epochs + 1
        state.decaying = state.decaying or not value < state.last_epoch_perplexity * sufficient
        if state.decaying:
            state.learning_rate /= settings.lr_decay
        state.last_epoch_perplexity = value
        state.best_epoch_perplexity = min(value, state.best_epoch_perplexity)
    state.best_perplexity = min(value, state.best_perplexity)
    state.evaluated, state.epoch_done = True, at_end
    return improved


def _begin_epoch(state: TrainingState) -> None:
    state.epoch += 1
    state.window = 0
    state.states = None
    state.evaluated = state.epoch_done = False
    state.loss_sum = state.epoch_seconds = 0.0
    state.predictions = 0
