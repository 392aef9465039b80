"""Models that adapt to what they read: a cache of what was read last, and steps of training on it.

Every word is scored before anything is learned of it. s_t is the output of the last layer, from which y_t is predicted.

The neural cache (Grave et al. 2017) expects the words that followed states like this one:

    p_cache(w) = sum_i [w = y_i] exp(flatness s_t . s_i) / sum_i exp(flatness s_t . s_i),   i the N positions before t
    p(w) = (1 - weight) p_model(w) + weight p_cache(w);   where nothing is remembered, p_model(w)

Dynamic evaluation (Mikolov et al. 2010) takes a step of SGD, as training does, after each segment of SEGMENT words: a
sentence is cut into as many segments as it needs. With statistics of the training text (Krause et al. 2018) the step is

    theta -= rate g / (RMS + EPSILON) - decay R (theta_0 - theta),    R = min(RMS / mean(RMS), 1 / decay)

where theta_0 is the model, g the gradient of the segment's loss divided by SEGMENT, and RMS the root of the mean square
that such a gradient, of STATISTICS_STREAMS segments, has over the training text.

What is learned is forgotten where a new scope begins: a sentence, or a paragraph, which a blank line ends.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from rnnlm.batches import windows
from rnnlm.corpus import Corpus
from rnnlm.errors import TextError
from rnnlm.model import (
    IGNORED,
    SENTENCE_END,
    Array,
    Gradient,
    Gradients,
    LanguageModel,
    Optimizer,
    Parameters,
    Workspace,
    mean_weights,
    pieces,
    runs,
    softmax_loss,
)
from rnnlm.scoring import POSITIONS, Score, positions_at_once, side_by_side
from rnnlm.settings import AdaptationSettings

SEGMENT = 5  # words, at most, from one step to the next
EPSILON = 2e-5  # of the reported settings
RATE_POWER = 0.5  # rows of rarer words learn faster, as in training
STATISTICS_STREAMS = 100  # segments whose mean gradient is squared
STATISTICS_WINDOWS = 400  # and how many such gradients are enough
RUN = 8 * POSITIONS  # positions that are read before the cache is asked about them
SCORES = 2**18  # numbers of a block of the cache's scores, which stay near a core
TUNING_NUMBERS = 2**25  # of outputs that are held in memory to find the cache's settings
WEIGHTS, FLATNESSES = (0.03, 0.1, 0.2, 0.4), (0.03, 0.1, 0.3, 1.0)  # the grid in which that begins
MOST = (0.99, 1000.0)  # of each
LEAST_STEP = 0.03  # share of a weight below which it is moved no more
BLOCK = 2**16  # numbers that stay in a core's cache from one elementwise pass to the next

Floats = NDArray[np.float64]


class Adapting:
    """Reads a text on from call to call, and adapts to it.

    Arguments:
        model: never changed; where it carries its state, that is carried too.
        settings: what is learned, and for how long.
        counts: (V,) how often each word occurs in training.
        rms: the root of the mean squared gradient, of each parameter, where a step is divided by it.
    """

    def __init__(
        self, model: LanguageModel, settings: AdaptationSettings, counts: Array, rms: Parameters | None = None
    ) -> None:
        self.settings, self.states, self.age, self.last = settings, model.start(1), 0, -1
        self.dtype = self.states.dtype
        self.cache = Cache(settings.cache, model.settings.hidden, self.dtype) if settings.caching else None
        self.learner: Learner | None = None
        if settings.dynamic:
            self.learner = Rms(model, settings, rms) if rms else Sgd(model, settings, counts)
        self.model = self.learner.model if self.learner else model

    def begin(self) -> None:
        """Go on from a state of zero, whatever the model carries."""
        self.states = self.model.start(1)

    def losses(self, ids: Array, work: Workspace) -> Floats:
        """Return -log p (N,), in nats, of each word of whole sentences (N,), the ends of which are `</s>`."""
        parts = [self._part(ids[part], work) for part in sentence_runs(offsets_of(ids))]
        return np.concatenate(parts) if parts else np.empty(0)

    def hypotheses(self, sentences: Sequence[Array], work: Workspace) -> Floats:
        """Return log p (n,), in nats, of sentences of which one comes next, but learn of none.

        Each is its ids, the last of which is `</s>`, and is read from the states that there are. It is what `losses`
        would find, but that no step is taken within a sentence.
        """
        losses, s = self._apart(np.concatenate(sentences), self.states, work)
        each, start = np.empty(len(sentences)), 0
        for number, ids in enumerate(sentences):
            part = slice(start, start + len(ids))
            start, own = part.stop, losses[part].astype(np.float64)
            if self.cache:
                reach = self.age + np.arange(len(ids))
                shares = self.cache.shares(s[part], ids, reach, self.settings.flatness, work)
                own = mixed(own, shares, reach, self.settings.weight)
            each[number] = -own.sum()
        return each

    def _part(self, ids: Array, work: Workspace) -> Floats:
        losses, s, reach = self.read(ids, work)
        if self.cache:
            shares = self.cache.shares(s, ids, reach, self.settings.flatness, work)
            losses = mixed(losses, shares, reach, self.settings.weight)
            self.cache.add(s, ids)
        return losses

    def read(self, ids: Array, work: Workspace) -> tuple[Floats, Array, Array]:
        """Read whole sentences (N,), and learn, but ask no cache.

        Returns -log p (N,) in nats, the outputs s (N, H), which are empty where there is no cache, and how many
        positions before each are in its scope (N,).
        """
        x = np.concatenate(([SENTENCE_END], ids[:-1])).astype(np.int32)
        reach = self._reach(x)
        wanted = self.cache is not None
        if self.learner:
            losses, s = self._learning(self.learner, x, ids, reach, work, wanted)
        elif self.model.settings.carry_state:
            losses, s = self._on(x, ids, work)
        else:
            losses, s = self._apart(ids, self.states, work)
        return losses.astype(np.float64), s, reach

    def _reach(self, x: Array) -> Array:
        """Say how many positions before each of x (N,) are in its scope."""
        begins = np.zeros(len(x), bool)
        if self.settings.adapt_over != "text":
            begins = x == SENTENCE_END
        if self.settings.adapt_over == "paragraph":  # a sentence of `</s>` alone was a blank line
            begins[1:] &= begins[:-1]
            begins[0] &= self.last == SENTENCE_END
        places = np.arange(len(x))
        reach = places - np.maximum.accumulate(np.where(begins, places, -self.age))
        self.age = int(reach[-1]) + 1
        self.last = int(x[-1])  # of the next sentence's beginning, what stood before its `</s>`
        return np.asarray(reach)

    def _on(self, x: Array, y: Array, work: Workspace) -> tuple[Array, Array]:
        """Read with the state that is carried: the losses (N,) and s (N, H)."""
        losses, outputs = [], []
        for part in runs(0, len(x), positions_at_once(self.model)):
            found, s, self.states = outputs_of(self.model, x[part, None], y[part, None], self.states, work)
            losses.append(found)
            outputs.append(s)
        return np.concatenate(losses), np.concatenate(outputs)

    def _apart(self, ids: Array, states_before: Array, work: Workspace) -> tuple[Array, Array]:
        """Read each sentence from the same states (L, M, 1, H), many side by side."""
        model, starts = self.model, offsets_of(ids)
        losses = np.empty(len(ids), self.dtype)
        s = np.empty((len(ids), model.settings.hidden), self.dtype)
        sentences = np.split(ids, starts[1:-1])
        for numbers, x, y in side_by_side(sentences, positions_at_once(model)):
            states = states_before.repeat(len(numbers), axis=2)
            for part in runs(0, len(x), max(1, positions_at_once(model) // len(numbers))):
                found, outputs, states = outputs_of(model, x[part], y[part], states, work)
                steps, streams = np.nonzero(y[part] != IGNORED)
                places = starts[numbers][streams] + steps + part.start
                losses[places], s[places] = found, outputs
        return losses, s

    def _learning(
        self, learner: Learner, x: Array, y: Array, reach: Array, work: Workspace, wanted: bool
    ) -> tuple[Array, Array]:
        """Read segment by segment, and take a step after each."""
        losses = np.empty(len(y), self.dtype)
        s = np.empty((len(y) if wanted else 0, self.model.settings.hidden), self.dtype)
        for part in segments(y):
            if reach[part.start] == 0:
                learner.forget()
            own_x, own_y = x[part, None], y[part, None]
            learner.prepare(own_x, own_y)
            if wanted:  # the outputs; `losses` then reads the same again
                (outputs, _), _ = self.model.read(own_x, self.states, work)
                s[part] = outputs[:, 0]
            (found, self.states), backward = self.model.losses(own_x, own_y, self.states, work)
            losses[part] = found[:, 0]
            learner.step(backward(np.full(own_y.shape, learner.weight)), work)
        return losses, s


def outputs_of(model: LanguageModel, x: Array, y: Array, states: Array, work: Workspace) -> tuple[Array, Array, Array]:
    """Read words x with targets y (T, B): the losses (n,) and s (n, H) where y is not IGNORED, the states after."""
    (s, states), _ = model.read(x, states, work)
    at = np.flatnonzero(y.reshape(-1) != IGNORED)
    outputs = s.reshape(y.size, -1)[at]  # a copy
    V, c = model.parameters["V"], model.parameters["c"]
    losses, _ = softmax_loss(outputs, y.reshape(-1)[at], V, c, model.settings.cutoffs, work)
    return losses, outputs, states


def offsets_of(ids: Array) -> Array:
    """Say where each sentence of ids (N,) begins, and where the last ends."""
    return np.concatenate(([0], np.flatnonzero(ids == SENTENCE_END) + 1))


def sentence_runs(offsets: Array, size: int = RUN) -> Iterator[slice]:
    """Cut a text whose sentences begin at offsets (sentences + 1,) into runs of whole ones, of about `size` positions.

    Yields where they lie in the ids.
    """
    first, last = 0, len(offsets) - 1
    while first < last:
        after = int(np.searchsorted(offsets, offsets[first] + size, side="right")) - 1  # the last that ends in time
        after = max(after, first + 1)
        yield slice(int(offsets[first]), int(offsets[after]))
        first = after


def segments(ids: Array) -> Iterator[slice]:
    """Cut each sentence into segments of about equal length."""
    for start, end in itertools.pairwise(offsets_of(ids).tolist()):
        yield from pieces(start, end, math.ceil((end - start) / SEGMENT))


# ---------------------------------------------------------------------------------------------------------------------
# The cache


class Cache:
    """The outputs s (n, H) at the last positions, `size` of them at most, and the words y (n,) that followed."""

    def __init__(self, size: int, hidden: int, dtype: DTypeLike = np.float32) -> None:
        self.size = size
        self.s, self.y = np.empty((0, hidden), dtype), np.empty(0, np.int32)

    def add(self, s: Array, y: Array) -> None:
        """Remember positions, of s (T, H) and y (T,), which follow those before."""
        self.s = np.concatenate((self.s, s[-self.size :]))[-self.size :]
        self.y = np.concatenate((self.y, y[-self.size :]))[-self.size :]

    def shares(self, s: Array, y: Array, reach: Array, flatness: float, work: Workspace) -> Floats:
        """Return p_cache (T,) of words y (T,) at outputs s (T, H) that follow what is remembered.

        Each is expected by what is remembered and by those before it, as far back as `reach` (T,) says; 0 where that is
        nothing.
        """
        keys, words, n = np.concatenate((self.s, s)), np.concatenate((self.y, y)), len(self.s)
        shares, places = np.zeros(len(y)), np.arange(n, n + len(y), dtype=np.int32)
        first = (places - np.minimum(reach, self.size)).astype(np.int32)  # that is asked

        def fill(rows: slice) -> None:
            columns = slice(int(first[rows].min()), n + rows.stop - 1)
            if columns.start >= columns.stop:
                return
            e = s[rows] @ keys[columns].T  # a product of T rows, and N + T columns, of which each row takes N
            e *= flatness
            column = np.arange(columns.start, columns.stop, dtype=np.int32)
            outside = column >= places[rows, None]
            outside |= column < first[rows, None]
            np.copyto(e, -np.inf, where=outside)
            peak = e.max(axis=1, keepdims=True)
            e -= np.where(peak > -np.inf, peak, 0)
            np.exp(e, out=e)
            row, at = np.nonzero(words[columns] == y[rows, None])
            found, total = np.bincount(row, e[row, at], len(e)), e.sum(axis=1, dtype=np.float64)  # both in float64
            np.divide(found, total, out=shares[rows], where=total > 0)

        most = min(self.size, n + len(y))
        work.each(fill, runs(0, len(y), max(8, min(most // 4, SCORES // (most + 1)))))
        return shares


def mixed(losses: Floats, shares: Floats, reach: Array, weight: float) -> Floats:
    """Return -log p (T,) of the mixture: of the model's losses (T,) and the cache's p (T,), where that has any."""
    log_shares = np.full(len(shares), -math.inf)
    np.log(shares, out=log_shares, where=shares > 0)
    return np.where(reach > 0, -np.logaddexp(math.log1p(-weight) - losses, math.log(weight) + log_shares), losses)


@dataclass
class _Tuner:
    """The mean loss over a text that was read, by the cache's weight and flatness."""

    losses: Floats
    s: Array
    y: Array
    reach: Array
    cache: Cache
    work: Workspace
    progress: Callable[[int], object] | None = None

    @cached_property
    def shares(self) -> dict[float, Floats]:
        """The shares by flatness, as far as they are known."""
        return {}

    def loss(self, weight: float, flatness: float) -> float:
        """Return the mean loss, in nats."""
        if flatness not in self.shares:
            self.shares[flatness] = self.cache.shares(self.s, self.y, self.reach, flatness, self.work)
        return float(mixed(self.losses, self.shares[flatness], self.reach, weight).mean())


def tune(reader: Adapting, corpus: Corpus, work: Workspace) -> tuple[float, float]:
    """Find the cache's weight and flatness with which a text has the lowest perplexity.

    The best of a grid is moved by smaller and smaller steps, one of the two at a time. Of a long text only the
    beginning is read, TUNING_NUMBERS of its outputs. Raises TextError where the text has no sentences.
    """
    assert reader.cache is not None  # as the caller has seen to
    part = corpus.beginning(max(1, TUNING_NUMBERS // reader.model.settings.hidden))
    if not part.sentences:
        raise TextError("there is nothing to tune on: the text has no sentences; name another file with --tune-on")
    found = [(*reader.read(part.ids[run], work), part.ids[run]) for run in sentence_runs(part.offsets)]
    losses, s, reach, y = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    tuner = _Tuner(losses, s, y, reach, reader.cache, work)
    best, values = min((tuner.loss(*values), values) for values in itertools.product(WEIGHTS, FLATNESSES))
    step = 0.5
    while step > LEAST_STEP:
        before = best
        for which, factor in itertools.product((0, 1), (1 + step, 1 / (1 + step))):
            moved = list(values)
            moved[which] = min(float(f"{values[which] * factor:.3g}"), MOST[which])  # told as it is used
            loss = tuner.loss(*moved)
            if loss < best:
                best, values = loss, (moved[0], moved[1])
        step = step if best < before else step / 2
    return values


# ---------------------------------------------------------------------------------------------------------------------
# Dynamic evaluation


class Learner:
    """A copy of a model that learns, and can forget; what is touched is known by its rows."""

    weight = 1.0  # of each loss in the gradient

    def __init__(self, model: LanguageModel, settings: AdaptationSettings) -> None:
        self.settings, self.original, self.time = settings, model.parameters, 0
        self.model = replace(model, parameters={name: value.copy() for name, value in model.parameters.items()})
        # of each row, the last step that it has taken; 0: it is the model's
        self.done = {name: np.zeros(len(value), np.int64) for name, value in model.parameters.items()}

    def prepare(self, x: Array, y: Array) -> None:
        """Bring the parameters that words x and targets y (T, 1) read up to the last step."""

    def step(self, gradients: Gradients, work: Workspace) -> None:
        """Take a step against gradients, which are overwritten."""
        self.time += 1
        for name, gradient in gradients.items():
            for rows, _ in gradient:
                self.done[name][rows] = self.time
        self.move(gradients, work)

    def move(self, gradients: Gradients, work: Workspace) -> None:
        """Change the parameters."""
        raise NotImplementedError

    def forget(self) -> None:
        """Go back to the model."""
        if self.time:
            for name, done in self.done.items():
                rows = np.flatnonzero(done)
                self.model.parameters[name][rows] = self.original[name][rows]
                done[rows] = 0
        self.time = 0


class Sgd(Learner):
    """Steps as those of training: the rate is for the sum over a segment, and rows of words have rates of their own."""

    def __init__(self, model: LanguageModel, settings: AdaptationSettings, counts: Array) -> None:
        super().__init__(model, settings)
        self.optimizer = Optimizer("sgd", self.model.parameters, model.settings, counts, power=RATE_POWER)

    def move(self, gradients: Gradients, work: Workspace) -> None:
        """Change the parameters."""
        self.optimizer.step(self.model.parameters, gradients, self.settings.dynamic, work)


class Rms(Learner):
    """Steps that are divided by RMS, the root of the mean squared gradient in training, and go back to the model."""

    weight = 1 / SEGMENT

    def __init__(self, model: LanguageModel, settings: AdaptationSettings, rms: Parameters) -> None:
        super().__init__(model, settings)
        mean = sum(float(value.sum(dtype=np.float64)) for value in rms.values()) / sum(map(np.size, rms.values()))
        decay, type_ = settings.decay, model.parameters["V"].dtype
        self.rate = {name: (settings.dynamic / (value + EPSILON)).astype(type_) for name, value in rms.items()}
        # decay R, of which R is at most 1 / decay
        self.pull = {name: np.minimum(decay * value / (mean or 1), 1).astype(type_) for name, value in rms.items()}

    def prepare(self, x: Array, y: Array) -> None:
        """Let rows that are read now go back to the model for the steps in which they were not."""
        settings, words = self.model.settings, np.unique(x)
        J, tails = len(settings.cutoffs), np.unique(np.searchsorted(np.array(settings.cutoffs, int), y, side="right"))
        self._catch_up("V" if settings.tied else "U", words + J if settings.tied else words)
        edges = [*settings.cutoffs, settings.words]
        for tail in tails[tails > 0].tolist():  # what is read of every softmax is never behind
            rows = np.arange(edges[tail - 1] + J, edges[tail] + J)
            self._catch_up("V", rows)
            self._catch_up("c", rows)

    def _catch_up(self, name: str, rows: Array) -> None:
        done = self.done[name]
        late = rows[(done[rows] > 0) & (done[rows] < self.time)]
        if late.size:
            missed, original = self.time - done[late], self.original[name][late]
            left = (1 - self.pull[name][late]) ** missed.reshape(-1, *(1 for _ in original.shape[1:]))
            parameter = self.model.parameters[name]
            parameter[late] = original + (parameter[late] - original) * left.astype(original.dtype)
            done[late] = self.time

    def move(self, gradients: Gradients, work: Workspace) -> None:
        """Change the parameters."""

        def move(task: tuple[str, Any, Array]) -> None:
            name, rows, g = task
            theta = self.model.parameters[name][rows]
            g *= self.rate[name][rows]
            theta = theta + self.pull[name][rows] * (self.original[name][rows] - theta) - g
            self.model.parameters[name][rows] = theta

        work.each(move, [(name, *block) for name, gradient in gradients.items() for block in blocks(gradient)])


def blocks(gradient: Gradient) -> Iterator[tuple[Any, Array]]:
    """Cut a gradient into blocks of about BLOCK numbers; yields the rows of the table, and their values."""
    for rows, values in gradient:
        for run in runs(0, len(values), max(1, BLOCK * len(values) // max(1, values.size))):
            own = slice(rows.start + run.start, rows.start + run.stop) if isinstance(rows, slice) else rows[run]
            yield own, values[run]


def root_mean_square(
    model: LanguageModel, corpus: Corpus, work: Workspace, progress: Callable[[int], object] | None = None
) -> Parameters:
    """Return, shaped as the parameters, the root of the mean squared gradient over a text.

    A gradient is of the mean loss of SEGMENT words in each of STATISTICS_STREAMS places of the text; the first
    STATISTICS_WINDOWS of them count. `progress` is told of the predictions made. Raises TextError where the text has no
    sentences.
    """
    if not corpus.sentences:
        raise TextError("there is nothing to square: the text has no sentences; name another with --dynamic-rms")
    read = windows(corpus, STATISTICS_STREAMS, SEGMENT)
    squares = {name: np.zeros_like(value) for name, value in model.parameters.items()}
    states, count = model.start(read.streams), min(len(read), STATISTICS_WINDOWS)
    for number in range(count):
        x, y = read[number]
        (_, states), backward = model.losses(x, y, states, work)
        for name, gradient in backward(mean_weights(y)).items():
            for rows, values in gradient:
                squares[name][rows] += values * values
        if progress:
            progress(int(np.count_nonzero(y != IGNORED)))
    return {name: np.sqrt(value / count) for name, value in squares.items()}


def perplexity(
    reader: Adapting,
    corpus: Corpus,
    work: Workspace,
    *,
    unknown_id: int,
    progress: Callable[[int], object] | None = None,
) -> Score:
    """Score a text as `scoring.perplexity` does, in its order, with what is learned of it.

    Raises TextError when the text has no sentences.
    """
    if not corpus.sentences:
        raise TextError("there is nothing to score: the text has no sentences; name another file")
    total = known = 0.0
    for run in sentence_runs(corpus.offsets, POSITIONS if reader.learner else RUN):
        ids = np.asarray(corpus.ids[run])
        losses = reader.losses(ids, work)
        total += float(losses.sum())
        known += float(losses.sum(where=ids != unknown_id))
        if progress:
            progress(len(ids))
    return Score(corpus.sentences, corpus.words, corpus.unknown, corpus.predictions, -total, -known)
