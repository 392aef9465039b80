"""How far back errors reach over a text, and what a truncation would lose.

Norms are those of every delta_t(t - lag) that `tracing.watch` sees. What a truncation loses is measured: gradients are
computed by `LanguageModel.read` with it and without it, over the same text, and compared. Letters are model.py's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rnnlm.batches import windows
from rnnlm.corpus import Corpus
from rnnlm.errors import TextError
from rnnlm.model import CELLS, IGNORED, Array, Gradients, LanguageModel, Parameters, Workspace, runs
from rnnlm.tracing import Seen, no_numbers, norm, output_errors, truncated, watch

POSITIONS = 2048  # of a window
STREAMS = 16  # at most: `watch` wants few
STEPS = 128  # of a window, at least; and four times the lags, so that few errors are cut by its beginning
PART = 512  # positions that a thread takes at a time: their arrays stay near a core
TRIES = 3  # truncations whose gradients are computed, beside that at all lags
TOLERANCE = 0.01  # share of the gradient that the advised truncation may lose
NEAR = TOLERANCE / 2  # what loses more than that, and no more than TOLERANCE, is good enough
STEADY = 0.05  # by which the factor of a step may differ from 1 where errors neither vanish nor explode


class Gate(NamedTuple):
    """One part of z, over all positions."""

    gate: str  # a letter of `Cell.gates`
    radius: float | None  # spectral radius of the gate's rows of W; None where W s is not added to it
    singular: float | None  # their largest singular value
    slope: float  # mean size of the slope by which delta is made: 1 - s^2, for an Elman network


class LayerFlow(NamedTuple):
    """What goes back through one layer, by lag: means over the errors that have a step so far back."""

    number: int  # from 1
    delta: Array  # (lags + 1,): mean norm of delta_t(t - lag)
    dstates: Array  # (M, lags + 1): that of dE_t/ds and, for an LSTM, of dE_t/dc
    beyond: Array  # (lags + 1,): share of the sum of all these norms that lies beyond each lag
    factor: float  # what a step back keeps of delta, geometric mean
    gates: list[Gate]
    past: float  # mean factor from state to state that does not pass W: u of a GRU, f of an LSTM, else 0

    @property
    def of_first(self) -> Array:
        """The norms of delta and then of dstates, (1 + M, lags + 1), as shares of those at lag 0, unless they are 0."""
        norms = np.vstack((self.delta, self.dstates))
        return np.asarray(norms / np.where(norms[:, :1], norms[:, :1], 1))

    @property
    def verdict(self) -> str:
        """Whether gradients "vanish", "explode", or are "steady"."""
        return "vanish" if self.factor < 1 - STEADY else "explode" if self.factor > 1 + STEADY else "steady"


@dataclass(frozen=True)
class Flow:
    """How errors flow back over a text."""

    errors: int  # that were followed
    pairs: Array  # (lags + 1,): how many of them have a step so far back
    layers: list[LayerFlow]
    lost: dict[int, float]  # K: norm of the difference that truncation at K makes to the gradient, as a share of it
    advice: int | None  # the least of these that loses no more than TOLERANCE; None: all lags lose more


class _Read(NamedTuple):
    """A window as it was read."""

    x: Array  # (T, B)
    states: Array  # before it
    ds: Array  # (T, B, H): dE_t/ds_t of the errors that are followed


def gradient_flow(
    model: LanguageModel,
    corpus: Corpus,
    work: Workspace,
    *,
    lags: int = 32,
    words: int = 10_000,
    progress: Callable[[int], object] | None = None,
) -> Flow:
    """Follow the errors of about so many words of a text, so many steps back.

    An error counts only where its whole reach, `lags` steps or to the beginning of its sentence, lies in one window.
    `progress` is told the number of errors followed since its last call. Raises TextError when the text has no
    sentences, ModelError where numbers are not finite.
    """
    if not corpus.sentences:
        raise TextError("there is nothing to follow: the text has no sentences; name another file")
    sums, read, pairs = _Sums(model, lags), list[_Read](), np.zeros(lags + 1, np.int64)
    for parts, reach in _followed(truncated(model, lags), corpus, lags, sums, work):
        read += parts
        pairs += np.array([np.count_nonzero(reach >= lag) for lag in range(lags + 1)])
        if progress:
            progress(int(np.count_nonzero(reach >= 0)))
        if pairs[0] >= words:
            break
    layers = [sums.layer(number, pairs) for number in range(model.settings.layers)]
    if not all(np.isfinite([*layer.delta, *layer.dstates.flat, layer.past]).all() for layer in layers):
        raise no_numbers()
    lost, advice = _advice(model, read, layers, sums.gradients, int(np.flatnonzero(pairs)[-1]), work)
    return Flow(int(pairs[0]), pairs, layers, lost, advice)


def _followed(
    model: LanguageModel, corpus: Corpus, lags: int, sums: _Sums, work: Workspace
) -> Iterator[tuple[list[_Read], Array]]:
    """Read a text window by window, and take all errors back; yield the window's parts, and each error's reach.

    The reach is (T, B), -1 where an error is not followed. Threads take some streams each.
    """
    steps = max(STEPS, 4 * lags)
    long_enough = corpus.predictions // steps if model.settings.carry_state else corpus.sentences
    read = windows(corpus, max(1, min(STREAMS, POSITIONS // steps, long_enough)), steps)
    parts = [(streams, Workspace()) for streams in runs(0, read.streams, max(1, PART // steps))]
    states = model.start(read.streams)
    for number, (x, y) in enumerate(read):
        at = np.arange(len(x))[:, None]
        begins = np.where(model.keeps(x), -1, at)
        begin = np.maximum.accumulate(begins if number else np.maximum(begins, 0))  # -1: in the window before
        wanted = (y != IGNORED) & ((begin >= 0) | (at >= lags))
        found = [_Sums(model, lags, wanted[:, streams]) for streams, _ in parts]

        def walk(n: int, x: Array = x, states: Array = states, found: list[_Sums] = found) -> Any:
            streams, own = parts[n]
            return watch(model, x[:, streams], states[:, :, streams], lags, found[n].look, own)

        walked = work.each(walk, range(len(parts)))
        s = np.concatenate([s for (s, _), _ in walked], axis=1)
        _, ds = output_errors(model, s, y, wanted, work.part("errors"))

        def back(n: int, walked: list[Any] = walked, ds: Array = ds) -> Gradients:
            gradients: Gradients = walked[n][1](ds[:, parts[n][0]])
            return gradients

        for own, gradients in zip(found, work.each(back, range(len(parts))), strict=True):
            sums.add(own, gradients)
        reach = np.where(wanted, np.minimum(at - begin, lags), -1)
        yield [_Read(x[:, own], states[:, :, own], ds[:, own]) for own, _ in parts], reach
        states = np.concatenate([after for (_, after), _ in walked], axis=2)


class _Sums:
    """Sums of norms and of slopes over some errors; `wanted` (T, B) are those that count, of what goes back now."""

    def __init__(self, model: LanguageModel, lags: int, wanted: Array | None = None) -> None:
        self.model, self.wanted, cell, layers = model, wanted, CELLS[model.settings.cell], model.settings.layers
        self.delta = np.zeros((layers, lags + 1))
        self.dstates = np.zeros((layers, len(cell.states), lags + 1))
        self.slopes = [np.zeros(len(cell.gates) * units) for units in model.settings.units]
        self.past = np.zeros(layers)
        self.gradients = Parameters() if wanted is not None else _zeros(model)  # truncated at all lags

    def look(self, seen: Seen) -> None:
        """Add what went back at one lag; errors that do not count are zero."""
        layer, lag = seen.layer, seen.lag
        self.delta[layer, lag] += _norms(seen.delta).sum()
        self.dstates[layer, :, lag] += _norms(seen.dstates).sum(axis=(1, 2))
        if lag == 0:
            self.slopes[layer] += np.abs(seen.slopes[self.wanted]).sum(axis=0, dtype=np.float64)
            self.past[layer] += seen.carry[-1][self.wanted].mean(axis=1, dtype=np.float64).sum()

    def add(self, other: _Sums, gradients: Gradients) -> None:
        """Add the sums over other errors, and their gradients."""
        for name in ("delta", "dstates", "past"):
            getattr(self, name)[...] += getattr(other, name)
        for own, found in zip(self.slopes, other.slopes, strict=True):
            own += found
        _add(self.gradients, gradients)

    def layer(self, layer: int, pairs: Array) -> LayerFlow:
        """Make means of the sums."""
        count, sums = np.maximum(pairs, 1), self.delta[layer]
        delta = sums / count
        last = int(np.flatnonzero(pairs >= max(1, pairs[0] / 100))[-1])  # so far back, the mean is one of many errors
        factor = float((delta[last] / delta[0]) ** (1 / last)) if last and delta[0] else 1.0
        beyond = np.append(np.cumsum(sums[:0:-1])[::-1], 0) / (sums.sum() or 1)
        gates, past = _gates(self.model, layer, self.slopes[layer] / count[0]), float(self.past[layer] / count[0])
        return LayerFlow(layer + 1, delta, self.dstates[layer] / count, beyond, factor, gates, past)


def _norms(vectors: Array) -> Array:
    """Return the norm of each vector (..., n), in float64."""
    return np.asarray(np.sqrt(np.einsum("...n,...n->...", vectors, vectors, dtype=np.float64)))


def _gates(model: LanguageModel, layer: int, slopes: Array) -> list[Gate]:
    """Describe each part of z, with the mean slopes (G*H,)."""
    cell, H, W = CELLS[model.settings.cell], model.settings.units[layer], model.parameters[f"W{layer + 1}"]
    recalls, gates = cell.recalls or cell.gates, []
    for number, gate in enumerate(cell.gates):
        radius = singular = None
        if gate in recalls:
            rows = W[recalls.index(gate) * H :][:H].astype(np.float64)
            if not np.isfinite(rows).all():
                raise no_numbers()
            radius = float(np.abs(np.linalg.eigvals(rows)).max())
            singular = float(np.linalg.norm(rows, 2))
        gates.append(Gate(gate, radius, singular, float(slopes[number * H :][:H].mean())))
    return gates


def _advice(
    model: LanguageModel, read: list[_Read], layers: list[LayerFlow], reached: Parameters, most: int, work: Workspace
) -> tuple[dict[int, float], int | None]:
    """Search for a small truncation that loses little; return what each that was tried loses, and the one found.

    `reached` is the gradient truncated at `most`, which is all lags that there are. What is lost falls about as the
    norms beyond K do, and is some three times their share: so these say what to try first. Between two that were tried
    it falls about exponentially.
    """
    whole = _gradient(model, read, None, work)
    lost = {most: _lost(whole, reached)}
    beyond = np.max([layer.beyond for layer in layers], axis=0)  # (lags + 1,)
    low, high, wanted = -1, most, TOLERANCE / 3  # the least is above `low`, and at most `high`
    while len(lost) <= TRIES and low < high - 1 and lost[high] <= NEAR:
        if low < 0:
            guess = int(np.flatnonzero(beyond <= wanted)[0])
        else:
            ratio = lost[low] / max(lost[high], TOLERANCE / 10)  # which may be nothing
            guess = low + math.ceil((high - low) * math.log(lost[low] / TOLERANCE) / math.log(ratio))
        K = max(low + 1, min(high - 1, guess))
        lost[K] = _lost(whole, _gradient(model, read, K, work))
        low, high = (low, K) if lost[K] <= TOLERANCE else (K, high)
        wanted = TOLERANCE * float(beyond[K]) / (lost[K] or 1)
    return dict(sorted(lost.items())), high if lost[high] <= TOLERANCE else None


def _lost(whole: Parameters, found: Parameters) -> float:
    """Return the joint norm of the difference between two gradients, as a share of that of the first."""
    apart = [norm(found[name] - value) for name, value in whole.items()]
    lost = math.hypot(*apart) / (math.hypot(*map(norm, whole.values())) or 1)
    if not math.isfinite(lost):
        raise no_numbers()
    return lost


def _gradient(model: LanguageModel, read: list[_Read], K: int | None, work: Workspace) -> Parameters:
    """Return the gradients of all that truncation acts on: U, and X, W and b of each layer."""
    total = _zeros(model)

    def back(window: _Read) -> Gradients:
        _, backward = truncated(model, K).read(window.x, window.states, Workspace())
        return backward(window.ds)

    for some in runs(0, len(read), work.threads):  # summed in the order of the text, whoever computes them
        for gradients in work.each(back, read[some]):
            _add(total, gradients)
    return total


def _zeros(model: LanguageModel) -> Parameters:
    """Return zeros for the gradients of all that truncation acts on."""
    total = {name: np.zeros_like(value) for name, value in model.parameters.items() if name[0] in "XWb"}
    return {"U": np.zeros_like(model.word_rows), **total}


def _add(total: Parameters, gradients: Gradients) -> None:
    for name, gradient in gradients.items():
        for rows, values in gradient:
            total[name][rows] += values
