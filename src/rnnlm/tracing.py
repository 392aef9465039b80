"""What delta_t does: each delta_t(k) of a sentence, as model.py computes it.

With truncation `by_diagonals` takes all errors back together, lag by lag, and at each lag and layer it calls the cell's
`backward` once. `read` can be given a cell: so one whose `backward` also shows what it is given and what it writes lets
us see every delta_t(k) of the model's own computation. `watch` hands it such a cell. What these vectors add up to is
then compared with the gradients of `LanguageModel.read`, which without truncation go another way, by columns.

Letters and equations are those of model.py; steps count from 0 in arrays, and from 1 wherever they are shown.
Gradients are those of the sum of all E_t.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from rnnlm.checking import brief
from rnnlm.errors import ModelError, SettingsError, TextError, counted
from rnnlm.model import (
    CELLS,
    IGNORED,
    SENTENCE_END,
    Array,
    Gradients,
    LanguageModel,
    ModelSettings,
    Workspace,
    embed,
    recur,
    runs,
    softmax_loss,
)
from rnnlm.scoring import WINDOW_NUMBERS

LONGEST = 100  # words of a sentence: its pairs are half the square of that
DIGITS = 16  # of a float64

# ---------------------------------------------------------------------------------------------------------------------
# Watching errors go back


class Seen(NamedTuple):
    """What goes back through a layer at one lag: row k belongs to step k and the error of step k + lag."""

    layer: int  # from 0
    lag: int
    dstates: Array  # (M, T - lag, B, H): dE_{k+lag}/ds_k and, for an LSTM, dE_{k+lag}/dc_k
    slopes: Array  # (T - lag, B, G*H), of the states along z_k
    carry: Array  # (M, T - lag, B, H), see `Cell.slopes`
    delta: Array  # (T - lag, B, G*H): delta_{k+lag}(k)


def watch(
    model: LanguageModel, x: Array, states: Array, lags: int, look: Callable[[Seen], object], work: Workspace
) -> tuple[tuple[Array, Array], Callable[[Array], Gradients]]:
    """Do as `LanguageModel.read` with the truncation `lags`, and show `look` all that goes back; B is below 64.

    The arrays that `look` sees are written over when it returns. What the cell takes for dE/dc_k is what came back from
    c_{k+1}; (15) adds what goes through s_k, so that the whole of it is shown.
    """
    settings, cell = model.settings, CELLS[model.settings.cell]
    calls = itertools.count()

    def backward(ds: Array, slopes: Array, carry: Array, delta: Array) -> None:
        dstates = ds.copy()
        dstates[1:] += dstates[0] * carry[0]  # (15); other cells have one state
        cell.backward(ds, slopes, carry, delta)
        lag, above = divmod(next(calls), settings.layers)  # at each lag the last layer comes first
        look(Seen(settings.layers - 1 - above, lag, dstates, slopes, carry, delta))

    return truncated(model, lags).read(x, states, work, cell=cell._replace(backward=backward))


def output_errors(model: LanguageModel, s: Array, y: Array, wanted: Array, work: Workspace) -> tuple[Array, Array]:
    """Return the losses E_t (T, B) and dE_t/ds_t (T, B, H), (7): both zero at positions not wanted (T, B)."""
    V, c, S, all_y = model.parameters["V"], model.parameters["c"], s.reshape(y.size, -1), y.reshape(-1)
    losses, dS, places = np.zeros(y.size, S.dtype), np.zeros_like(S), np.flatnonzero(wanted & (y != IGNORED))
    for some in runs(0, places.size, max(1, WINDOW_NUMBERS // len(V))):  # the softmax holds V numbers for each
        at = places[some]
        losses[at], backward = softmax_loss(S[at], all_y[at], V, c, model.settings.cutoffs, work)
        dS[at], _, _ = backward(np.ones(at.size, S.dtype))
    return losses.reshape(y.shape), dS.reshape(s.shape)


def truncated(model: LanguageModel, truncate: int | None) -> LanguageModel:
    """Return the model with errors that reach so many steps back; None: to the first."""
    return replace(model, settings=replace(model.settings, truncate=truncate))


def no_numbers() -> ModelError:
    """Return what to raise where deltas are not finite."""
    return ModelError("the model's gradients are no longer numbers; train it again with a lower --lr or --clip")


# ---------------------------------------------------------------------------------------------------------------------
# One sentence


@dataclass(frozen=True)
class LayerTrace:
    """What went back through one layer: [t, k] is the error of step t at step k, zero where k > t."""

    number: int  # from 1
    delta: Array  # (T, T, G*H)
    dstates: Array  # (M, T, T, H): dE_t/ds_k and, for an LSTM, dE_t/dc_k
    slopes: Array  # (T, G*H)
    carry: Array  # (M, T, H)
    inputs: Array  # (T, D): U[x_k], or s_k of the layer below
    before: Array  # (T, H): s_{k-1}


class Term(NamedTuple):
    """What each pair adds to the gradient of one parameter, and what all add up to."""

    name: str  # "dW1" and so on
    norms: Array  # (T, T): the norm of what the pair adds
    total: Array  # the sum over the pairs that are kept, in the shape of the gradient; of dU the rows that are read
    digits: int  # to which that sum and the gradient of model.py agree
    cut: float  # norm of what truncation leaves out, as a share of that of all pairs


@dataclass(frozen=True)
class Trace:
    """All errors of a sentence, and what they do at each step."""

    model: LanguageModel  # in float64, with the truncation that is asked for
    x: Array  # (T,) words read
    y: Array  # (T,) words to predict
    losses: Array  # (T,): E_t, in nats
    ds: Array  # (T, H): dE_t/ds_t of the last layer
    layers: list[LayerTrace]

    @property
    def surprisals(self) -> Array:
        """-log2 p of each word (T,), in bits."""
        return self.losses / math.log(2)

    @property
    def pairs(self) -> Array:
        """Which pairs there are (T, T): k <= t."""
        return np.tri(len(self.x), dtype=bool)

    @property
    def kept(self) -> Array:
        """Which of them truncation keeps (T, T): t - k <= K."""
        K, T = self.model.settings.truncate, len(self.x)
        return self.pairs if K is None else self.pairs & ~np.tri(T, k=-min(K, T) - 1, dtype=bool)

    def terms(self) -> list[Term]:
        """Say what each pair adds to dU, and to dX, dW and db of each layer: (10), (11) and (23)."""
        (_, _), backward = self.model.read(self.x[:, None], self.model.start(1), Workspace())
        gradients = backward(self.ds[:, None])
        return [
            _term(self, name, left, right, np.asarray(gradients[name][0][1]))
            for number in range(len(self.layers))
            for name, left, right in _factors(self, number)
        ]


def _factors(trace: Trace, layer: int) -> Iterator[tuple[str, Array, Array]]:
    """Yield the parameters of a layer: a pair adds to the gradient left[t, k] right[k]', one column of it for b."""
    own, cell, H = trace.layers[layer], CELLS[trace.model.settings.cell], trace.model.settings.units[layer]
    number, read, recalled = layer + 1, own.delta[..., cell.part(cell.reads, H)], cell.part(cell.recalls, H)
    X = trace.model.parameters.get(f"X{number}")
    if layer == 0:
        words = np.unique(trace.x)  # dU has their rows: here they are columns
        yield "U", read if X is None else read @ X, np.equal(trace.x[:, None], words).astype(np.float64)  # (11), (23)
    if X is not None:
        yield f"X{number}", read, own.inputs  # (23)
    yield f"W{number}", own.delta[..., recalled], own.before  # (10)
    yield f"b{number}", own.delta, np.ones((len(trace.x), 1))  # (11)


def _term(trace: Trace, name: str, left: Array, right: Array, gradient: Array) -> Term:
    norms = np.linalg.norm(left, axis=2) * np.linalg.norm(right, axis=1)

    def add(pairs: Array) -> Array:
        """Sum over some pairs."""
        total = np.einsum("tk,tkg->gk", pairs, left) @ right
        return np.asarray(total.T if name == "U" else total.reshape(gradient.shape))

    whole, total = add(trace.pairs), add(trace.kept)
    cut = norm(whole - total) / (norm(whole) or 1)
    return Term(f"d{name}", norms, total, digits(total, gradient), cut)


def norm(array: Array) -> float:
    """Return the Euclidean norm of all numbers."""
    return float(np.linalg.norm(array))


def digits(found: Array, expected: Array) -> int:
    """Return to how many digits arrays are equal, beside the largest number of the second."""
    size, apart = np.abs(expected).max(), np.abs(found - expected).max()
    return DIGITS if apart <= size * 10.0**-DIGITS else max(0, math.floor(-math.log10(apart / size))) if size else 0


def trace(model: LanguageModel, ids: Array, truncate: int | None = None) -> Trace:
    """Follow the errors of one sentence, its ids (words,) without that of its end; K = `truncate` shows what it cuts.

    Raises TextError where the sentence has more than LONGEST words, ModelError where numbers are not finite.
    """
    if len(ids) > LONGEST:
        raise TextError(f"the sentence has {len(ids):,} words, and at most {LONGEST} can be shown; give a shorter one")
    y = np.array([*ids, SENTENCE_END])
    x, T = np.array([SENTENCE_END, *ids]), len(y)
    settings = replace(model.settings, truncate=truncate)
    parameters = {name: value.astype(np.float64) for name, value in model.parameters.items()}
    model = LanguageModel(settings, parameters, model.first)
    M, G = len(CELLS[settings.cell].states), len(CELLS[settings.cell].gates)
    found = [
        (np.zeros((T, T, G * H)), np.zeros((M, T, T, H)), np.empty((T, G * H)), np.empty((M, T, H)))
        for H in settings.units
    ]

    def look(seen: Seen) -> None:
        delta, dstates, slopes, carry = found[seen.layer]
        k = np.arange(T - seen.lag)
        delta[k + seen.lag, k], dstates[:, k + seen.lag, k] = seen.delta[:, 0], seen.dstates[:, :, 0]
        if seen.lag == 0:
            slopes[...], carry[...] = seen.slopes[:, 0], seen.carry[:, :, 0]

    (s, _), backward = watch(model, x[:, None], model.start(1), T - 1, look, Workspace())
    losses, ds = output_errors(model, s, y[:, None], np.ones((T, 1), bool), Workspace())
    backward(ds)
    if not all(np.isfinite(array).all() for array in (losses, *itertools.chain(*found))):
        raise no_numbers()
    read = [model.word_rows[x], *(_outputs(model, x, number) for number in range(1, settings.layers + 1))]
    first = model.start(1)[:, 0]  # (L, 1, H)
    before = [np.concatenate((first[n, :, : s.shape[1]], s[:-1])) for n, s in enumerate(read[1:])]
    layers = [LayerTrace(n + 1, *arrays, read[n], before[n]) for n, arrays in enumerate(found)]
    return Trace(model, x, y, losses[:, 0], ds[:, 0], layers)


def _outputs(model: LanguageModel, x: Array, layers: int) -> Array:
    """Return s (T, H) of the last of so many layers."""
    work, states, cell = Workspace(), model.start(1)[:layers], CELLS[model.settings.cell]
    rows, _ = embed(x[:, None], model.word_rows, None, work)
    (s, _), _ = recur(rows, model.keeps(x[:, None]), states, model.layers[:layers], cell, None, work)
    return np.asarray(s[:, 0])


# ---------------------------------------------------------------------------------------------------------------------
# One pair


class Arrival(NamedTuple):
    """One of the terms of dE_t/ds_k, or of dE_t/dc_k."""

    state: str  # "s" or "c"
    formula: str
    values: Array  # (H,)


class Gate(NamedTuple):
    """A part of delta_t(k): the derivative of the state that the gate acts on, times a slope."""

    gate: str  # a letter of `Cell.gates`
    state: str  # "s" or "c"
    dstate: Array  # (H,)
    slope: Array  # (H,)
    delta: Array  # (H,), as model.py has it


class Pair(NamedTuple):
    """How delta_t(k) of a layer came to be, from the one after it."""

    arrivals: list[Arrival]
    gates: list[Gate]
    digits: int  # to which the terms add up to what model.py has


def pair(trace: Trace, layer: int, t: int, k: int) -> Pair:
    """Take apart delta_t(k) of a layer; all three count from 1, and k <= t.

    Raises SettingsError where there is no such layer, or no such pair.
    """
    if not 1 <= layer <= len(trace.layers):
        raise SettingsError(f"--layer is {layer}; the model has {counted(len(trace.layers), 'layer')}")
    if not 1 <= k <= t <= len(trace.x):
        what = f"there are the errors t = 1 to {len(trace.x)}, each at the steps k = 1 to t; give two of these"
        raise SettingsError(f"--at is {t} {k}; {what}")
    own, cell, H = trace.layers[layer - 1], CELLS[trace.model.settings.cell], trace.model.settings.units[layer - 1]
    dstates = own.dstates[:, t - 1, k - 1]  # (M, H)
    arrivals = list(_arrivals(trace, layer, t, k))
    gates = []
    for number, gate in enumerate(cell.gates):
        part, state = slice(number * H, (number + 1) * H), len(cell.states) > 1 and gate != "o"
        delta = own.delta[t - 1, k - 1, part]
        gates.append(Gate(gate, cell.states[state], dstates[int(state)], own.slopes[k - 1, part], delta))
    sums = [sum(term.values for term in arrivals if term.state == state) for state in cell.states]
    products = [gate.dstate * gate.slope for gate in gates]
    deltas = [gate.delta for gate in gates]
    return Pair(arrivals, gates, min(digits(np.array(sums), dstates), digits(np.array(products), np.array(deltas))))


def _arrivals(trace: Trace, layer: int, t: int, k: int) -> Iterator[Arrival]:
    """Yield what adds up to the derivatives of E_t by the states of step k, in a layer."""
    own, cell, H = trace.layers[layer - 1], CELLS[trace.model.settings.cell], trace.model.settings.units[layer - 1]
    find = trace.model.parameters.__getitem__
    if layer < len(trace.layers):
        reads = cell.part(cell.reads, trace.model.settings.units[layer])
        above = trace.layers[layer].delta[t - 1, k - 1, reads]
        yield Arrival("s", f"X{layer + 1}' delta_{t}({k}) of layer {layer + 1}", above @ find(f"X{layer + 1}"))  # (24)
    elif k == t:
        yield Arrival("s", f"V' (p_{t} - 1_y{t})", trace.ds[t - 1])  # (7)
    after = own.dstates[:, t - 1, k] * own.carry[:, k] if k < t else None  # past W
    if k < t:
        delta = own.delta[t - 1, k, cell.part(cell.recalls, H)]
        yield Arrival("s", f"W{layer}' delta_{t}({k + 1})", delta @ find(f"W{layer}"))  # (9)
    if after is not None and cell.gates == "nruq":
        yield Arrival("s", f"dE_{t}/ds_{k + 1} u_{k + 1}", after[0])  # (21)
    if len(cell.states) > 1:
        through = own.dstates[0, t - 1, k - 1] * own.carry[0, k - 1]
        yield Arrival("c", f"dE_{t}/ds_{k} o_{k} (1 - tanh(c_{k})^2)", through)  # (15)
        if after is not None:
            yield Arrival("c", f"dE_{t}/dc_{k + 1} f_{k + 1}", after[1])  # (17)


class Addition(NamedTuple):
    """What a pair adds to the gradient of a parameter: left right'."""

    name: str  # "W1" and so on
    formula: str
    left: Array
    right: Array


def additions(trace: Trace, layer: int, t: int, k: int) -> list[Addition]:
    """Return what delta_t(k) of a layer adds to the gradients; all count from 1. Of dU it is the row of the word."""
    delta = f"delta_{t}({k})"
    came_in = f"U[x_{k}]" if layer == 1 else f"s_{k}[layer {layer - 1}]"
    row = f"X1' {delta}" if "X1" in trace.model.parameters else delta
    formulas = {"U": f"{row}, to the row of x_{k}", "X": f"{delta} {came_in}'", "W": f"{delta} s_{k - 1}'", "b": delta}
    found = []
    for name, left, right in _factors(trace, layer - 1):
        if name == "U":
            found.append(Addition(name, formulas["U"], np.ones(1), left[t - 1, k - 1]))
        else:
            found.append(Addition(name, formulas[name[0]], left[t - 1, k - 1], right[k - 1]))
    return found


# ---------------------------------------------------------------------------------------------------------------------
# The worked example of docs/derivation.md


TUTORIAL_WORDS = ("</s>", "cats", "chase")
TUTORIAL_SENTENCE = "cats chase cats"
_TUTORIAL = {
    "U": ((0.3, -0.2), (-0.4, 0.5), (0.1, 0.6)),
    "W1": ((0.9, -0.5), (0.4, 0.7)),
    "b1": (0.1, -0.1),
    "V": ((1.0, -0.5), (-0.3, 0.8), (0.2, -0.9)),
    "c": (0.2, -0.1, 0.0),
}


def tutorial() -> LanguageModel:
    """Return the network of three words and two units that docs/derivation.md works through."""
    return LanguageModel(ModelSettings(3, 2), {name: np.array(value) for name, value in _TUTORIAL.items()})


def tutorial_ids(sentence: str) -> list[int]:
    """Return the ids of a sentence's words; raises TextError where the tutorial's network does not know one."""
    words = sentence.split()
    for word in words:
        if word not in TUTORIAL_WORDS[1:]:
            raise TextError(f"the tutorial's network knows the words cats and chase, and not {brief(word)}; use these")
    return [TUTORIAL_WORDS.index(word) for word in words]
