"""Models that adapt to what they read: a cache of what was read last, and steps of training on it.

Every word is scored before anything is learned of it. s_t is the output of the last layer, from which y_t is predicted.

The neural cache (Grave et al. 2017) expects the words that followed states like this one:

    p_cache(w) = sum_i [w = y_i] exp(flatness s_t . s_i) / sum_i exp(flatness s_t . s_i),   i the N positions before t
    p(w) = (1 - weight) p_model(w) + weight p_cache(w);   where nothing is remembered, p_model(w)

Dynamic evaluation, the steps of training, is in `dynamic`.

What is learned is forgotten where a new scope begins: a sentence, or a paragraph, which a blank line ends.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from functools import cache

import numpy as np
from numpy.typing import DTypeLike, NDArray

from rnnlm.corpus import Corpus
from rnnlm.dynamic import Learner, Rms, Sgd, segments
from rnnlm.errors import TextError
from rnnlm.model import (
    IGNORED,
    SENTENCE_END,
    Array,
    LanguageModel,
    Parameters,
    Workspace,
    runs,
    softmax_loss,
)
from rnnlm.scoring import Score, offsets_of, positions_at_once, side_by_side
from rnnlm.searching import search
from rnnlm.settings import AdaptationSettings

POSITIONS = 2**10  # that are read at once where the model learns of them
RUN = 2**14  # positions that are read before the cache is asked about them
SCORES = 2**18  # numbers of a block of the cache's scores, which stay near a core
LARGEST = 60.0  # exponents within ±60 need no maximum taken off before exp(), in float32
TUNING_POSITIONS = 2**17  # of a text, the most by which the cache's settings are found
TUNING_NUMBERS = 2**25  # of the outputs there, which are held in memory
WEIGHTS, FLATNESSES = (0.03, 0.1, 0.2, 0.4), (0.03, 0.1, 0.3, 1.0)  # the grid in which that begins
MOST = (0.99, 1000.0)  # of each
LEAST_STEP = 0.03  # share of a weight below which it is moved no more

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
        self.settings, self.states = settings, model.start(1)
        self.age = 0  # positions in this scope
        self.word, self.before = SENTENCE_END, -1  # the last word, and what it was read from
        self.dtype = self.states.dtype
        self.cache = Cache(settings.cache, model.settings.units[-1], self.dtype) if settings.caching else None
        self.learner: Learner | None = None
        if settings.dynamic:
            self.learner = Rms(model, settings, rms) if rms else Sgd(model, settings, counts)
        self.model = self.learner.model if self.learner else model

    @property
    def run(self) -> int:
        """How many positions are read at once."""
        return POSITIONS if self.learner else RUN

    def losses(self, ids: Array, work: Workspace) -> Floats:
        """Return -log p (N,), in nats, of the words that come next; the end of a sentence is `</s>`."""
        parts = [self._part(ids[part], work) for part in sentence_runs(offsets_of(ids), self.run)]
        return np.concatenate(parts) if parts else np.empty(0)

    def hypotheses(self, sentences: Sequence[Array], work: Workspace) -> Floats:
        """Return log p (n,), in nats, of sentences of which one comes next, but learn of none.

        Each is its ids, the last of which is `</s>`, and is read from the states that there are. Where what is learned
        lasts over the text, it is what `losses` would find, but that no step is taken within a sentence.
        """
        log_p, place = np.empty(len(sentences)), 0
        if self.learner and sentences:
            ids = np.concatenate(sentences)
            self.learner.prepare(np.append(ids, self.word), ids)
        while place < len(sentences):
            sizes = np.cumsum([len(ids) for ids in sentences[place : place + RUN]])
            some = slice(place, place + max(1, int(np.searchsorted(sizes, RUN, side="right"))))
            place = some.stop
            if len(sentences[some.start]) > RUN:  # in parts, by a reader that is thrown away
                trial = copy(self)
                trial.learner, trial.cache = None, copy(self.cache)
                log_p[some] = -trial.losses(sentences[some.start], work).sum()
            else:
                log_p[some] = self._side_by_side(sentences[some], work)
        return log_p

    def _side_by_side(self, sentences: Sequence[Array], work: Workspace) -> list[float]:
        """Return log p of some sentences, as `hypotheses` does."""
        losses, s = self._apart(np.concatenate(sentences), self.states, work)
        ends, log_p = np.cumsum([len(ids) for ids in sentences])[:-1], []
        for ids, own, outputs in zip(sentences, np.split(losses.astype(float), ends), np.split(s, ends), strict=True):
            reach = self.age + np.arange(len(ids))
            log_p.append(-float(self._with_cache(own, outputs, ids, reach, work).sum()))
        return log_p

    def _with_cache(self, losses: Floats, s: Array, y: Array, reach: Array, work: Workspace) -> Floats:
        if not self.cache:
            return losses
        shares = self.cache.shares(s, y, reach, self.settings.flatness, work)
        return mixed(losses, shares, reach, self.settings.weight)

    def _part(self, ids: Array, work: Workspace) -> Floats:
        losses, s, reach = self.read(ids, work)
        losses = self._with_cache(losses, s, ids, reach, work)
        if self.cache:
            self.cache.add(s, ids)
        return losses

    def read(self, ids: Array, work: Workspace) -> tuple[Floats, Array, Array]:
        """Read whole sentences, or a part of one, (N,), and learn, but ask no cache.

        Returns -log p (N,) in nats, the outputs s (N, H), which are empty where there is no cache, and how many
        positions before each are in its scope (N,).
        """
        x = np.concatenate(([self.word], ids[:-1])).astype(np.int32)
        reach, whole = self._reach(x), self.word == ids[-1] == SENTENCE_END
        self.word, wanted = int(ids[-1]), self.cache is not None
        if self.learner:
            losses, s = self._learning(self.learner, x, ids, reach, work, wanted)
        elif whole and not self.model.settings.carry_state:
            losses, s = self._apart(ids, self.states, work)
        else:
            losses, s = self._on(x, ids, work)
        return losses.astype(np.float64), s, reach

    def _reach(self, x: Array) -> Array:
        """Say how many positions before each of x (N,) are in its scope."""
        begins = np.zeros(len(x), bool)
        if self.settings.adapt_over != "text":
            begins = x == SENTENCE_END
        if self.settings.adapt_over == "paragraph":  # a sentence of `</s>` alone was a blank line
            begins[1:] &= begins[:-1]
            begins[0] &= self.before == SENTENCE_END
        places = np.arange(len(x))
        reach = places - np.maximum.accumulate(np.where(begins, places, -self.age))
        self.age, self.before = int(reach[-1]) + 1, int(x[-1])
        return np.asarray(reach)

    def _on(self, x: Array, y: Array, work: Workspace) -> tuple[Array, Array]:
        """Read from the states that there are, word after word: the losses (N,) and s (N, H)."""
        s = np.empty((len(x), self.model.settings.units[-1]), self.dtype)
        for part in runs(0, len(x), positions_at_once(self.model)):
            (outputs, self.states), _ = self.model.read(x[part, None], self.states, work)
            s[part] = outputs[:, 0]
        return self._losses(s, y, work), s

    def _losses(self, s: Array, y: Array, work: Workspace) -> Array:
        """Return -log p (N,) of words y (N,) after the outputs s (N, H), of the model alone."""
        V, c, cutoffs = self.model.parameters["V"], self.model.parameters["c"], self.model.settings.cutoffs
        parts = runs(0, len(y), positions_at_once(self.model))
        return np.concatenate([softmax_loss(s[part], y[part], V, c, cutoffs, work, back=False)[0] for part in parts])

    def _apart(self, ids: Array, states_before: Array, work: Workspace) -> tuple[Array, Array]:
        """Read each sentence from the same states (L, M, 1, H), many side by side."""
        model = self.model
        s = np.empty((len(ids), model.settings.units[-1]), self.dtype)
        for places, x, y in side_by_side(ids, offsets_of(ids), positions_at_once(model)):
            states = states_before.repeat(x.shape[1], axis=2)
            for part in runs(0, len(x), max(1, positions_at_once(model) // x.shape[1])):
                (outputs, states), _ = model.read(x[part], states, work)
                here = y[part] != IGNORED
                s[places[part][here]] = outputs[here]
        return self._losses(s, ids, work), s

    def _learning(
        self, learner: Learner, x: Array, y: Array, reach: Array, work: Workspace, wanted: bool
    ) -> tuple[Array, Array]:
        """Read segment by segment, and take a step after each."""
        losses = np.empty(len(y), self.dtype)
        s = np.empty((len(y) if wanted else 0, self.model.settings.units[-1]), self.dtype)
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


def sentence_runs(offsets: Array, size: int) -> Iterator[slice]:
    """Cut a text whose sentences begin at offsets (sentences + 1,) into runs of `size` positions or somewhat fewer.

    Yields where they lie in the ids. A run is of whole sentences, or a part of one that is longer.
    """
    first, last = 0, len(offsets) - 1
    while first < last:
        after = int(np.searchsorted(offsets, offsets[first] + size, side="right")) - 1  # the last that ends in time
        after = max(after, first + 1)
        yield from runs(int(offsets[first]), int(offsets[after]), size)
        first = after


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
        shares, number = np.zeros(len(y)), np.arange(n + len(y), dtype=np.int32)
        first = np.maximum(number[n:] - np.minimum(reach, self.size), 0).astype(np.int32)  # that is asked
        steep = flatness * float(np.einsum("nh,nh->n", keys, keys).max(initial=0)) > LARGEST  # by Cauchy and Schwarz

        def fill(rows: slice) -> None:  # a column of e for each of them
            asked = slice(int(first[rows].min()), n + rows.stop - 1)
            if asked.start >= asked.stop:
                return
            e = keys[asked] @ (s[rows] * flatness).T  # for T of them N + T keys, of which each asks N
            early, late = slice(asked.start, int(first[rows].max())), slice(n + rows.start, asked.stop)
            np.copyto(e[: early.stop - asked.start], -np.inf, where=number[early, None] < first[rows])
            np.copyto(e[late.start - asked.start :], -np.inf, where=number[late, None] >= number[n:][rows])
            if steep:  # the largest exponent of each is taken from all of its own
                peak = e.max(axis=0)
                e -= np.where(peak > -np.inf, peak, 0)
            np.exp(e, out=e)
            same = np.flatnonzero(words[asked, None] == y[rows])  # far quicker than np.nonzero
            found = np.bincount(same % e.shape[1], e.reshape(-1)[same], e.shape[1])  # a sum in float64, as the next
            total = e.sum(axis=0, dtype=np.float64)
            np.divide(found, total, out=shares[rows], where=total > 0)

        most = min(self.size, n + len(y))
        work.each(fill, runs(0, len(y), max(8, min(most // 4, SCORES // (most + 1)))))
        return shares


def mixed(losses: Floats, shares: Floats, reach: Array, weight: float) -> Floats:
    """Return -log p (T,) of the mixture: of the model's losses (T,) and the cache's p (T,), where that has any."""
    log_shares = np.full(len(shares), -math.inf)
    np.log(shares, out=log_shares, where=shares > 0)
    return np.where(reach > 0, -np.logaddexp(math.log1p(-weight) - losses, math.log(weight) + log_shares), losses)


def tune(reader: Adapting, corpus: Corpus, work: Workspace) -> tuple[float, float]:
    """Find the cache's weight and flatness with which a text has the lowest perplexity.

    The best of a grid is moved by smaller and smaller steps, one of the two at a time. Of a long text only the
    beginning is read. Raises TextError where the text has no sentences.
    """
    memory = reader.cache
    assert memory is not None  # as the caller has seen to
    part = corpus.beginning(max(1, min(TUNING_POSITIONS, TUNING_NUMBERS // reader.model.settings.units[-1])))
    if not part.sentences:
        raise TextError("there is nothing to tune on: the text has no sentences; name another file with --tune-on")
    found = [(*reader.read(part.ids[run], work), part.ids[run]) for run in sentence_runs(part.offsets, reader.run)]
    losses, s, reach, y = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    shares = cache(lambda flatness: memory.shares(s, y, reach, flatness, work))

    def loss(weight: float, flatness: float) -> float:
        return float(mixed(losses, shares(flatness), reach, weight).mean())

    def moved(which: int, value: float, change: float) -> float:
        value = value * (1 + change) if change > 0 else value / (1 - change)
        return min(float(f"{value:.3g}"), MOST[which])  # told as it is used

    _, (weight, flatness) = search(loss, itertools.product(WEIGHTS, FLATNESSES), moved, LEAST_STEP)
    return weight, flatness


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
    for run in sentence_runs(corpus.offsets, reader.run):
        ids = np.asarray(corpus.ids[run])
        losses = reader.losses(ids, work)
        total += float(losses.sum())
        known += float(losses.sum(where=ids != unknown_id))
        if progress:
            progress(len(ids))
    return Score(corpus.sentences, corpus.words, corpus.unknown, corpus.predictions, -total, -known)
