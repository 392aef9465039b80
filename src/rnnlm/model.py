"""The mathematics of a word-level recurrent language model, from the forward pass to the step of SGD.

This file imports numpy and the standard library only; it can be copied out. Equation numbers are those of
docs/derivation.md, where each one is derived from the chain rule; (1) to (11) are an Elman network's, those of other
cells stand with them, and `parameter_table` has the shapes of all.

Letters, everywhere: T steps, B streams, N = T*B positions, V words, D numbers in a word's row, H hidden units, G gates,
M states of a cell, J tails, L layers, K truncation.
`dX` has X's shape and is the gradient with respect to X: below, of the sum of all E_t; in the code each E_t has a
weight: for their mean, the loss L, 1 over the number of targets, and 0 where a target is IGNORED. A prime (W') is a
transpose. The B streams are the batch. W and b of layer 1 are called W1 and b1.

Forward, for each stream: word x_t comes in, the state s_t sums up all that was read, p_t says which word comes next,
and y_t is the word that does. 1_y is 1 at y and 0 elsewhere; `*` multiplies component by component.

    (1)  z_t = U[x_t] + W s_{t-1} + b           U (V, H): a row for each word;  W (H, H);  b (H,)
    (2)  s_t = tanh(z_t)                        s_{t-1} = 0 where a sentence begins;  other cells: other functions of z
    (3)  p_t = softmax(V s_t + c)               V (V, H): a row for each word;  c (V,)
    (4)  E_t = -log p_t[y_t],   L = mean of E_t over the positions;  perplexity = exp(L)

Backward: delta_t(k) = dE_t/dz_k, for steps k <= t; one product with W' moves it a step back.

    (5)  dE_t/d(V s_t + c) = p_t - 1_{y_t}      softmax and logarithm together: no other derivative is needed
    (6)  dV = sum_t (p_t - 1_{y_t}) s_t',   dc = sum_t (p_t - 1_{y_t})
    (7)  dE_t/ds_t = V' (p_t - 1_{y_t})
    (8)  delta_t(t) = dE_t/ds_t * (1 - s_t^2)
    (9)  delta_t(k-1) = W' delta_t(k) * (1 - s_{k-1}^2)
    (10) dW = sum_t sum_{k <= t} delta_t(k) s_{k-1}'
    (11) dU[x_k] += delta_t(k),   db = sum_t sum_{k <= t} delta_t(k)

A word's row may go through a matrix: (22), X U[x_t] in place of U[x_t] in (1). The input of a layer above always does,
and is the s_t of the layer below. Then (23), dX = sum_t sum_{k <= t} delta_t(k) U[x_k]', dU[x_k] += X' delta_t(k).

References: Elman (1990), "Finding structure in time", the network; Werbos (1990), "Backpropagation through time: what
it does and how to do it", (8) to (11); Williams and Peng (1990), the truncation; Mikolov et al. (2010), "Recurrent
neural network based language model", the language model; Pascanu et al. (2013), clipping by the joint norm.

A function with a gradient returns `(output, backward)`, and `backward` takes the gradient of its output.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]
Parameters = dict[str, Array]
Rows = list[tuple[Any, Array]]  # of a gradient, with their values: a slice or ids, disjoint; all other rows are zero
Gradient = Sequence[tuple[Any, "Array | Product"]]  # the same, but values may be a `Product`, which is yet to be made
Gradients = dict[str, Gradient]
Masks = Mapping[str, Array]  # of dropout, see `draw_masks`; "keep" (T, B): where a sentence keeps the carried state
NO_MASKS: Masks = MappingProxyType({})

SENTENCE_END = 0  # the id of </s>, which is also the context of a sentence's first word
IGNORED = -1  # a target that stands for no word: nothing is predicted there


@dataclass(frozen=True)
class ModelSettings:
    """What kind of model it is; nothing here changes while it is trained."""

    words: int  # V, the size of the vocabulary, </s> and <unk> included
    hidden: int = 100  # H
    cell: str = "elman"  # a key of CELLS
    truncate: int | None = None  # K: errors reach this many steps back; None: to the window's first step
    carry_state: bool = False  # False: each sentence starts from a state of zero
    cutoffs: tuple[int, ...] = ()  # ranks at which tails of rarer words begin; none: one softmax over all words
    layers: int = 1  # L
    embedding: int | None = None  # D; None: H
    tied: bool = False  # whether the words' rows of V are U as well; then the last layer has D units

    @property
    def units(self) -> tuple[int, ...]:
        """The size of each layer, H but for the last of a tied model, as V's rows are as wide as U's."""
        last = self.embedding if self.tied and self.embedding else self.hidden
        return (*(self.hidden for _ in range(self.layers - 1)), last)


@dataclass(eq=False)
class LanguageModel:
    """Parameters, and the functions of them that training, scoring and generation need."""

    settings: ModelSettings
    parameters: Parameters
    first: Array | None = None  # states (L, M, H) before a text's first word, where they are carried; None: zero

    def start(self, streams: int) -> Array:
        """Return the states (L, M, B, H) before the first word of each of B streams: zero, or `first`.

        H is that of the largest layer; a smaller one uses its first numbers.
        """
        shape = (self.settings.layers, len(CELLS[self.settings.cell].states), streams, max(self.settings.units))
        states = np.zeros(shape, self.parameters["V"].dtype)
        if self.first is not None:
            states += self.first[:, :, None]
        return states

    def carrying(self, carry_state: bool) -> LanguageModel:
        """Return the model as it carries its states from sentence to sentence, or begins each anew.

        Each then begins as a text does: where that is in `first`, which a network of one layer, one gate and no X may
        have, its product with W is a part of the row of `</s>`.
        """
        settings, parameters = replace(self.settings, carry_state=carry_state), self.parameters
        if self.first is None or carry_state or not self.settings.carry_state:
            return replace(self, settings=settings)
        U = parameters["U"].copy()
        U[SENTENCE_END] += parameters["W1"] @ self.first[0, 0]
        return LanguageModel(settings, {**parameters, "U": U})

    @property
    def word_rows(self) -> Array:
        """The table of (1) or (22), a row (D,) for each word; where it is tied, those rows of V."""
        tied, J = self.settings.tied, len(self.settings.cutoffs)
        return self.parameters["V"][J:] if tied else self.parameters["U"]

    @property
    def layers(self) -> list[Layer]:
        """The parameters of the recurrent layers, from the lowest up."""
        numbers = range(1, self.settings.layers + 1)
        return [Layer(*(self.parameters.get(f"{name}{number}") for name in "XWb")) for number in numbers]

    def keeps(self, x: Array, masks: Masks = NO_MASKS) -> Array:
        """Say at which words x (T, B) the state before is kept: not where a sentence begins, unless it is carried."""
        return np.asarray((x != SENTENCE_END) | masks.get("keep", self.settings.carry_state))

    def read(
        self, x: Array, states: Array, work: Workspace, masks: Masks = NO_MASKS, cell: Cell | None = None
    ) -> tuple[tuple[Array, Array], Callable[[Array], Gradients]]:
        """Read words x (T, B) from the states before (L, M, B, H): s (T, B, H), the states after, and backward.

        A `cell` that is given takes the place of the model's own: one that also shows what goes through it.
        """
        keep, cell, truncate = self.keeps(x, masks), cell or CELLS[self.settings.cell], self.settings.truncate
        rows, embed_backward = embed(x, self.word_rows, masks.get("rows"), work)
        (s, states), recur_backward = recur(rows, keep, states, self.layers, cell, truncate, work, masks)

        def backward(ds: Array) -> Gradients:
            drows, gradients = recur_backward(ds)
            return {"U": embed_backward(drows), **gradients}

        return (s, states), backward

    def losses(
        self, x: Array, y: Array, states: Array, work: Workspace, masks: Masks = NO_MASKS, back: bool = True
    ) -> tuple[tuple[Array, Array], Callable[[Array], Gradients]]:
        """Return the loss -log p of each target of a window.

        Takes words x and targets y (T, B), some of them perhaps IGNORED, the states before the window (L, M, B, H), and
        dropout's masks, where there are any.
        Returns the losses (T, B) in nats, zero where ignored, with the states after the window; and a function from the
        weights (T, B) of the losses in L to the gradients. It reads, and writes over, what this call left in `work`:
        call it once, before the next window, and not at all where `back` is false, which spares memory.
        """
        (s, states), read_backward = self.read(x, states, work, masks)
        counted = np.flatnonzero(y.reshape(-1) != IGNORED)
        at: Any = counted if counted.size < y.size else slice(None)  # mostly a slice, which copies nothing
        S, V, c = s.reshape(y.size, -1), self.parameters["V"], self.parameters["c"]  # S (N, H)
        losses = np.zeros(y.size, S.dtype)
        own_y, cutoffs = y.reshape(-1)[at], self.settings.cutoffs
        losses[at], softmax_backward = softmax_loss(S[at], own_y, V, c, cutoffs, work, back)

        def backward(weights: Array) -> Gradients:
            dS, dV, dc = softmax_backward(weights.reshape(-1)[at].astype(S.dtype))
            if counted.size < y.size:
                counted_dS, dS = dS, np.zeros_like(S)
                dS[at] = counted_dS
            gradients = {**read_backward(dS.reshape(s.shape)), "V": dV, "c": dc}
            if self.settings.tied:
                ((words, drows),) = in_arrays(gradients.pop("U"))
                gradients["V"] = add_rows(dV, words + len(self.settings.cutoffs), drows)  # (25)
            return gradients

        return (losses.reshape(y.shape), states), backward

    def step(self, words: Array, states: Array, work: Workspace) -> tuple[Array, Array]:
        """Read one word a stream (B,), and return log p of every word that may follow (B, V), and the states after."""
        (s, states), _ = self.read(words[None], states, work)
        return log_probabilities(s[0], self.parameters["V"], self.parameters["c"], self.settings.cutoffs, work), states


# ---------------------------------------------------------------------------------------------------------------------
# Words to rows of numbers


def embed(x: Array, U: Array, mask: Array | None, work: Workspace) -> tuple[Array, Callable[[Array], Gradient]]:
    """Look words x (T, B) up in U (V, D): the U[x_t] of (1), (T, B, D)."""
    rows = work.array("rows", (*x.shape, U.shape[1]), U.dtype)
    np.take(U, x, axis=0, out=rows, mode="clip")  # U[x_t] in (1); "clip" spares a copy, ids were checked when encoded

    def backward(drows: Array) -> Gradient:
        return [sum_rows(x.reshape(-1), drop(drows, mask, out=drows).reshape(x.size, -1))]  # (11)

    return drop(rows, mask, out=rows), backward


def sum_rows(ids: Array, values: Array) -> tuple[Array, Array]:
    """Add up the rows of values (N, D) that belong to the same id (N,). Returns the ids, ascending, and their sums."""
    order = np.argsort(ids, kind="stable")  # (N,)
    unique, starts, counts = np.unique(ids[order], return_index=True, return_counts=True)
    sums = values[order[starts]]  # (different ids, D)
    for word in np.flatnonzero(counts > 1):  # most words stand alone, and are done
        np.add.reduce(values[order[starts[word] : starts[word] + counts[word]]], axis=0, out=sums[word])
    return unique, sums


def add_rows(gradient: Gradient, ids: Array, values: Array) -> Gradient:
    """Add the values (n, D) of rows, by their ids (n,), ascending, to a gradient whose own rows are slices."""
    apart, gradient = np.ones(len(ids), bool), in_arrays(gradient)
    for rows, own in gradient:
        here = slice(*np.searchsorted(ids, (rows.start, rows.stop)))
        own[ids[here] - rows.start] += values[here]  # (25)
        apart[here] = False
    return [*gradient, (ids[apart], values[apart])]


# ---------------------------------------------------------------------------------------------------------------------
# The cells: elementwise functions, three for each. All products and the walk through time are `recur`'s.


class Cell(NamedTuple):
    """What one kind of recurrent unit computes from z_t and the states before.

    `forward(z, before, after)` reads z (..., B, G*H) and the M states `before`, each (..., B, H), and writes the states
    `after`, the first of which is the output s. It leaves in z what `slopes` wants.
    `slopes(z, before, after, carry)` writes all factors of the way back that no error changes: in the place of z,
    and into `carry`, shaped as `before`, for the ways from state to state that do not pass W.
    `backward(ds, slopes, carry, delta)` writes delta = dE/dz, and turns ds (M, ..., B, H), the gradient of the states
    after, in place into that of the states before as far as it does not pass W. All three work at one step or at many.
    """

    forward: Callable[[Array, Array, Array], None]
    slopes: Callable[[Array, Array, Array, Array], None]
    backward: Callable[[Array, Array, Array, Array], None]
    gates: str = "z"  # a letter for each of the G parts of z
    states: str = "s"  # a letter for each of the M states
    reads: str = ""  # the first gates, to which a word's row, or the layer below, is added; none named: all
    recalls: str = ""  # the gates that W s_{t-1} is added to; none named: all
    ones: str = ""  # the gates whose biases begin at 1, in a network of one layer
    rate: float = 1.0  # times the rule's, if it has row_rates: that of X, W and b, measured, see docs/benchmarks.md

    def part(self, gates: str, hidden: int) -> slice:
        """Say where neighboring gates lie in z; none named: all of z."""
        start = self.gates.index(gates or self.gates)
        return slice(start * hidden, (start + len(gates or self.gates)) * hidden)


def split(z: Array, H: int) -> list[Array]:
    """View the gates (..., H) of z (..., G*H)."""
    return [z[..., start : start + H] for start in range(0, z.shape[-1], H)]


def through_gates(derror: Array, slopes: Array, delta: Array) -> None:
    """Write delta (..., G*H): dE/dstate (..., H) of the state that some gates act on, times each gate's slope."""
    shape = (*derror.shape[:-1], -1, derror.shape[-1])
    np.multiply(derror[..., None, :], slopes.reshape(shape), out=delta.reshape(shape))


def one_state_backward(ds: Array, slopes: Array, carry: Array, delta: Array) -> None:
    """Go back through a cell whose only state is s."""
    through_gates(ds[0], slopes, delta)  # (8), (9), (20)
    ds *= carry  # (21)


def elman(z: Array, before: Array, after: Array) -> None:
    """Elman (1990): s = tanh(z)."""
    np.tanh(z, out=after[0])  # (2)


def elman_slopes(z: Array, before: Array, after: Array, carry: Array) -> None:
    """Take the slope of tanh, 1 - s^2; the only way back is through W."""
    np.multiply(after[0], after[0], out=z)
    np.subtract(1, z, out=z)  # of (8), and the second half of (9)
    carry[...] = 0


def relu(z: Array, before: Array, after: Array) -> None:
    """Rectified linear unit: s = max(z, 0)."""
    np.maximum(z, 0, out=after[0])  # in the place of (2)


def relu_slopes(z: Array, before: Array, after: Array, carry: Array) -> None:
    """Take the slope 1 where z > 0, else 0."""
    np.greater(z, 0, out=z)  # of (8) and (9)
    carry[...] = 0


def sigmoid(z: Array) -> None:
    """Put 1 / (1 + e^-z) in the place of z, as (1 + tanh(z/2)) / 2, which never overflows."""
    z *= 0.5
    np.tanh(z, out=z)
    z *= 0.5
    z += 0.5


def logistic(z: Array, before: Array, after: Array) -> None:
    """Mikolov et al. (2010): s = sigmoid(z)."""
    sigmoid(z)
    after[0] = z  # in the place of (2)


def logistic_slopes(z: Array, before: Array, after: Array, carry: Array) -> None:
    """Take the slope of the sigmoid, s (1 - s)."""
    np.subtract(1, after[0], out=z)
    z *= after[0]  # of (8) and (9)
    carry[...] = 0


def lstm(z: Array, before: Array, after: Array) -> None:
    """Hochreiter and Schmidhuber (1997), with the forget gate of Gers et al. (2000).

    (12) o, i, f = sigmoid(z_o), sigmoid(z_i), sigmoid(z_f),   g = tanh(z_g)
    (13) c_t = f c_{t-1} + i g
    (14) s_t = o tanh(c_t)
    """
    (s, c), H = after, after.shape[-1]
    o, i, f, g = split(z, H)
    sigmoid(z[..., : 3 * H])  # (12)
    np.tanh(g, out=g)
    np.multiply(f, before[1], out=c)
    c += i * g  # (13)
    np.multiply(o, np.tanh(c), out=s)  # (14)


def lstm_slopes(z: Array, before: Array, after: Array, carry: Array) -> None:
    """Take the slopes of the gates, that of s along c, and from c to the next c the forget gate.

    (15) dE_t/dc_k = dE_t/ds_k o (1 - tanh(c_k)^2), and what came back from c_{k+1}
    (16) delta_t(k) = dE_t/ds_k tanh(c_k) o (1 - o) for o;  dE_t/dc_k times g i (1 - i) for i, times
         c_{k-1} f (1 - f) for f, times i (1 - g^2) for g
    (17) dE_t/dc_k f goes to c_{k-1}: the second term of (15), one step further back
    """
    H, tanh_c = after.shape[-1], np.tanh(after[1])
    o, i, f, g = split(z, H)
    carry[0] = o * (1 - tanh_c * tanh_c)  # ds/dc, of (15)
    carry[1] = f  # dc_t/dc_{t-1}, of (17)
    o *= (1 - o) * tanh_c  # ds/dz_o, of (16), as are all below
    f *= (1 - f) * before[1]  # dc/dz_f
    slope_g = i * (1 - g * g)  # dc/dz_g
    i *= (1 - i) * g  # dc/dz_i
    g[...] = slope_g


def lstm_backward(ds: Array, slopes: Array, carry: Array, delta: Array) -> None:
    """Take errors back along two paths: to s, through W, and to c, past all gates but one."""
    H, (ds_, dc) = ds.shape[-1], ds
    dc += ds_ * carry[0]  # (15)
    through_gates(ds_, slopes[..., :H], delta[..., :H])  # (16)
    through_gates(dc, slopes[..., H:], delta[..., H:])
    ds_[...] = 0
    dc *= carry[1]  # (17)


def gru(z: Array, before: Array, after: Array) -> None:
    """Cho et al. (2014), with the reset gate behind the product, as in cuDNN.

    A word is added to n, r, u, and W s_{t-1} to r, u, q: so q is the product, with its bias, alone.

    (18) r, u = sigmoid(z_r), sigmoid(z_u),   n = tanh(z_n + r z_q)
    (19) s_t = (1 - u) n + u s_{t-1}
    """
    (s,), H = after, after.shape[-1]
    n, r, u, q = split(z, H)
    sigmoid(z[..., H : 3 * H])
    n += r * q
    np.tanh(n, out=n)  # (18)
    np.subtract(before[0], n, out=s)
    s *= u
    s += n  # (19)


def gru_slopes(z: Array, before: Array, after: Array, carry: Array) -> None:
    """Take ds/dz of each gate; r and q act through n.

    (20) delta_t(k) = dE_t/ds_k times (1 - u) (1 - n^2) for n, that times q r (1 - r) for r and times r for q;
         dE_t/ds_k times (s_{k-1} - n) u (1 - u) for u
    (21) dE_t/ds_{k-1} = dE_t/ds_k u, and what comes through W
    """
    H = after.shape[-1]
    n, r, u, q = split(z, H)
    carry[0], new = u, 1 - u  # ds_t/ds_{t-1}, of (21)
    u *= new * (before[0] - n)  # ds/dz_u, of (20), as are all below
    n *= -n
    n += 1
    n *= new  # ds/dz_n
    slope_q = n * r  # ds/dz_q
    r *= (1 - r) * n * q  # ds/dz_r
    q[...] = slope_q


CELLS: dict[str, Cell] = {
    "elman": Cell(elman, elman_slopes, one_state_backward),
    "relu": Cell(relu, relu_slopes, one_state_backward),
    "sigmoid": Cell(logistic, logistic_slopes, one_state_backward),
    "gru": Cell(gru, gru_slopes, one_state_backward, gates="nruq", reads="nru", recalls="ruq", rate=10),
    "lstm": Cell(lstm, lstm_slopes, lstm_backward, gates="oifg", states="sc", ones="f", rate=20),
}


# ---------------------------------------------------------------------------------------------------------------------
# The walk through time, and back


class Layer(NamedTuple):
    """The parameters of one recurrent layer."""

    X: Any  # (rows of z that are read into, D or H); None: what comes in is added as it is
    W: Any  # (rows of z that are recalled into, H)
    b: Any  # (G*H,)

    @property
    def units(self) -> int:
        """Its H."""
        return int(self.W.shape[1])


class Walk:
    """One layer's way through a window: arrays for all streams, or views of some, and what is done with some steps."""

    def __init__(
        self, inputs: Array, keep: Array, states: Array, layer: Layer, cell: Cell, mask: Array | None, work: Workspace
    ) -> None:
        """Take inputs (T, B, D), keep (T, B, 1), states before the window (M, B, H or more), and a mask (B, H)."""
        (T, B, _), H, M, type_ = inputs.shape, layer.units, len(cell.states), inputs.dtype
        self.cell, self.layer, self.mask, self.inputs, self.keep = cell, layer, mask, inputs, keep
        self.reads, self.recalls = cell.part(cell.reads, H), cell.part(cell.recalls, H)
        self.z, self.dz = (work.array(name, (T, B, len(layer.b)), type_) for name in ("z", "dz"))  # later z has slopes
        self.path = work.array("path", (M, T + 1, B, H), type_)  # the states, those before the window first
        self.before, self.carry = (work.array(name, (M, T, B, H), type_) for name in ("before", "carry"))
        self.ds = work.array("ds", (M, B, H), type_)  # on the way back, the gradient of the states at a step
        self.s = self.path[0, 1:] if mask is None else work.array("s", (T, B, H), type_)  # what is handed up
        self.dinputs = self.dz[..., self.reads] if layer.X is None else work.array("dinputs", inputs.shape, type_)
        self.W_transposed = np.ascontiguousarray(layer.W.T) if T > 1 else layer.W.T  # products like the copy better
        given = {name: value for name, value in layer._asdict().items() if value is not None}
        self.gradients = {name: work.array(f"d{name}", value.shape, type_) for name, value in given.items()}
        self.path[:, 0], self.ds[...] = states[..., :H], 0

    def part(self, streams: slice) -> Walk:
        """Return the same of some streams: views of the arrays."""
        own = copy(self)
        own.mask = None if self.mask is None else self.mask[streams]
        for name in ("inputs", "keep", "z", "dz", "ds", "s", "dinputs"):
            setattr(own, name, getattr(self, name)[:, streams])
        for name in ("path", "before", "carry"):
            setattr(own, name, getattr(self, name)[:, :, streams])
        return own

    def read(self, steps: slice) -> None:
        """Put into z what comes in from below: (1) but for the state."""
        z, came_in, b = _rows(self.z[steps]), _rows(self.inputs[steps]), self.layer.b
        if self.layer.X is not None:
            came_in = np.matmul(came_in, self.layer.X.T, out=z[:, self.reads])  # (22)
        np.add(came_in, b[self.reads], out=z[:, self.reads])  # (1), but for the state
        z[:, self.reads.stop :] = b[self.reads.stop :]

    def forward(self, steps: slice) -> None:
        """Take some steps."""
        product = np.empty(self.z[0, :, self.recalls].shape, self.z.dtype)
        for t in range(steps.start, steps.stop):
            before, z = self.before[:, t], self.z[t]
            recalled = z[:, self.recalls]
            np.multiply(self.path[:, t], self.keep[t], out=before)
            recalled += np.matmul(before[0], self.W_transposed, out=product)  # (1)
            self.cell.forward(z, before, self.path[:, t + 1])
            drop(self.path[0, t + 1], self.mask, self.s[t])

    def prepare_back(self, steps: slice) -> None:
        """Put slopes in the place of z, some steps at a time that stay in a core's cache."""
        for some in runs(steps.start, steps.stop, max(1, BLOCK // self.z[0].size)):
            after = self.path[:, some.start + 1 : some.stop + 1]
            self.cell.slopes(self.z[some], self.before[:, some], after, self.carry[:, some])

    def step_back(self, ds: Array, at: Any, delta: Array, last: bool) -> None:
        """Write delta `at` a step or several, from the gradient ds (M, ..., B, H) of the states there.

        Unless it is the last that is wanted, ds becomes in place the gradient of the states a step before.
        """
        self.cell.backward(ds, self.z[at], self.carry[:, at], delta)
        if not last:
            ds[0] += (_rows(delta)[:, self.recalls] @ self.layer.W).reshape(ds[0].shape)  # (9)
            ds *= self.keep[at]  # nothing reaches across the beginning of a sentence

    def by_columns(self, ds: Array, steps: slice) -> None:
        """Take some steps back without truncation; ds (T, B, H) is the gradient of what was handed up.

        Lay delta_t(k) out with a row for each error t, a column for each step k. The sum of a column, delta(k) = sum
        over t >= k of delta_t(k), moves by (9) as each delta_t does, with dE_{k-1}/ds_{k-1} added before the slope: one
        pass serves all errors.
        """
        self.prepare_back(steps)
        of_s = self.ds[0]
        for t in reversed(range(steps.start, steps.stop)):
            of_s += drop(ds[t], self.mask)  # (24)
            self.step_back(self.ds, t, self.dz[t], t == 0)

    def hand_down(self, steps: slice) -> None:
        """Find the gradient of what came in."""
        if self.layer.X is not None:
            np.matmul(_rows(self.dz[steps])[:, self.reads], self.layer.X, out=_rows(self.dinputs[steps]))  # (23), (24)

    def cut(self, steps: slice) -> list[slice]:
        """Cut steps so that each part has about READ_ROWS rows."""
        return pieces(steps.start, steps.stop, max(1, (steps.stop - steps.start) * self.z.shape[1] // READ_ROWS))

    def halves(self) -> list[tuple[str, slice]]:
        """Halve the gradients of X and W, so that two threads share each; b goes with W's first rows."""
        sizes = {name: len(value) for name, value in self.gradients.items() if name != "b"}
        return [(name, rows) for name, size in sizes.items() for rows in pieces(0, size, min(2, size))]

    def add_gradient(self, name: str, rows: slice, steps: slice) -> None:
        """Add what some steps give to some rows of the gradient of X or W, and with W's first rows to that of b."""
        dz, first = _rows(self.dz[steps]), steps.stop == len(self.z)  # the first that come are the last steps
        gates, came_in = (self.reads, self.inputs[steps]) if name == "X" else (self.recalls, self.before[0, steps])
        add_product(self.gradients[name][rows], dz[:, gates][:, rows].T, _rows(came_in), first)  # (10), (23)
        if name == "W" and rows.start == 0:
            add_product(self.gradients["b"], np.ones(len(dz), dz.dtype), dz, first)  # (11)


def add_product(total: Array, left: Array, right: Array, first: bool) -> None:
    """Add a product to a sum, or begin the sum with it."""
    if first:
        np.matmul(left, right, out=total)
    else:
        total += left @ right


def _rows(array: Array) -> Array:
    """View an array (..., n) as rows of n numbers."""
    return array.reshape(-1, array.shape[-1])


def recur(
    inputs: Array,
    keep: Array,
    states: Array,
    layers: list[Layer],
    cell: Cell,
    truncate: int | None,
    work: Workspace,
    masks: Masks = NO_MASKS,
) -> tuple[tuple[Array, Array], Callable[[Array], tuple[Array, Gradients]]]:
    """Walk L layers through a window: each reads the outputs of the one below.

    Takes inputs (T, B, D), keep (T, B), false where a step begins a sentence and forgets the state, and the states
    before the window (L, M, B, H), which are constants. Returns s (T, B, H) with the states after; and a function from
    ds to the gradients of inputs and parameters. An error reaches `truncate` steps back, through whatever layers; None:
    to the start.
    """
    keep = keep[..., None].astype(states.dtype)  # (T, B, 1), 0 or 1
    ways: list[Walk] = []
    for number, (X, W, b) in enumerate(layers, 1):
        layer, mask = Layer(X, drop(W, masks.get(f"W{number}")), b), masks.get(f"s{number}")
        below = ways[-1].s if ways else inputs
        ways.append(Walk(below, keep, states[number - 1], layer, cell, mask, work.part(f"layer {number}")))
    groups, spans = spread(ways)
    walk(ways, groups, spans, work)

    def backward(ds: Array) -> tuple[Array, Gradients]:
        walk_back(ds, ways, truncate, groups, spans, work)
        found = {
            f"{name}{number}": value for number, way in enumerate(ways, 1) for name, value in way.gradients.items()
        }
        gradients: Gradients = {name: whole(drop(value, masks.get(name), value)) for name, value in found.items()}
        return ways[0].dinputs, gradients

    after = states.copy()
    for way, own in zip(ways, after, strict=True):
        own[..., : way.layer.units] = way.path[:, -1]
    return (ways[-1].s, after), backward


def walk(ways: list[Walk], groups: list[slice], spans: list[slice], work: Workspace) -> None:
    """Take all steps forward: spans of them follow one another in a layer, and wait for those of the layer below."""
    tasks: Tasks = {}
    for k, steps in enumerate(spans):
        for n, way in enumerate(ways):
            below = [("forward", n - 1, k, g) for g in range(len(groups))]
            reads: Tasks = {
                ("read", n, k, i): (partial(way.read, some), below) for i, some in enumerate(way.cut(steps))
            }
            tasks |= reads
            for g, streams in enumerate(groups):
                go = partial(way.part(streams).forward, steps)
                tasks["forward", n, k, g] = go, [*reads, ("forward", n, k - 1, g)]
    work.run(tasks)


def walk_back(
    ds: Array, ways: list[Walk], truncate: int | None, groups: list[slice], spans: list[slice], work: Workspace
) -> None:
    """Take all steps back, from the gradient ds (T, B, H) of what the last layer handed up."""
    if truncate is not None:
        work.each(lambda streams: by_diagonals(ds[:, streams], [way.part(streams) for way in ways], truncate), groups)
    tasks: Tasks = {}
    for k, steps in reversed(list(enumerate(spans))):
        came_down, above = ds, list[Hashable]()
        for n, way in reversed(list(enumerate(ways))):
            for g, streams in enumerate(groups if truncate is None else []):
                go = partial(way.part(streams).by_columns, came_down[:, streams], steps)
                tasks["back", n, k, g] = go, [*above, ("back", n, k + 1, g)]
            done = [("back", n, k, g) for g in range(len(groups))]
            wanted = way.cut(steps) if truncate is None or n == 0 else []  # by_diagonals hands down by itself
            down: Tasks = {("down", n, k, i): (partial(way.hand_down, some), done) for i, some in enumerate(wanted)}
            tasks |= down
            came_down, above = way.dinputs, list(down)
    for k, steps in reversed(list(enumerate(spans))):  # one after the other, as rounding depends on the order
        for n, way in enumerate(ways):
            done = [("back", n, k, g) for g in range(len(groups))]
            for name, rows in way.halves():
                go = partial(way.add_gradient, name, rows, steps)
                tasks[name, n, k, rows.start] = go, [*done, (name, n, k + 1, rows.start)]
    work.run(tasks)


def spread(ways: list[Walk]) -> tuple[list[slice], list[slice]]:
    """Cut a window for threads: into groups of streams or, where there is only one, into spans of steps."""
    T, B, H = ways[0].s.shape
    groups, products = stream_groups(B, H), T * B * ways[0].layer.W.size
    return groups, pieces(0, T, max(1, min(T // SPAN_STEPS, products // SPAN_PRODUCTS)) if len(groups) == 1 else 1)


def by_diagonals(ds: Array, ways: list[Walk], truncate: int) -> None:
    """Backpropagate with errors that reach `truncate` steps back, lag by lag, all layers together; ds (T, B, H).

    At lag j, row k of `delta` is delta_{k+j}(k), and row k of `dstates` is dE_{k+j}/ds_k: a diagonal of the layout in
    `by_columns`. What a layer hands down has spent that many steps of its reach: alone, each layer would reach too far.
    """
    for way in ways:
        way.prepare_back(slice(0, len(ds)))
        way.dz[...] = 0
    dstates = [np.zeros_like(way.before) for way in ways]  # (M, T - lag, B, H) for each layer
    deltas = [np.empty_like(way.z) for way in ways]
    last = min(truncate, len(ds) - 1)
    for lag in range(last + 1):
        at = slice(0, len(ds) - lag)
        handed_down: Any = ds if lag == 0 else None
        for n, way in reversed(list(enumerate(ways))):
            if handed_down is not None:
                dstates[n][0] += drop(handed_down, way.mask)
            delta = deltas[n][at]  # (T - lag, B, G*H)
            way.step_back(dstates[n], at, delta, lag == last)
            dstates[n] = dstates[n][:, 1:]  # no state of this window lies before its first step
            way.dz[at] += delta
            handed_down = delta[..., way.reads] @ way.layer.X if n else None  # (24)


# ---------------------------------------------------------------------------------------------------------------------
# The output layer


def softmax_slice(
    S: Array, y: Array, V: Array, c: Array, work: Workspace
) -> tuple[tuple[Array, Array], Callable[[Array, Array], tuple[Array, Array | Product, Array]]]:
    """Compute some rows' part of a softmax: states S (n, H), V (rows, H), c (rows,), y (n,) counted from the first.

    Returns the logarithm of the sum of its exponentials (n,) and the targets' logits (n,), 0 for a target elsewhere;
    and a function from log Z (n,), of the whole sum, and the losses' weights (n,) to dS, dV and dc.
    """
    e, few = work.array("e", (len(S), len(V)), S.dtype), len(S) <= FEW  # (n, rows)
    cuts = runs(0, len(V), max(1, SMALL // max(1, S.size)) if few else len(V))
    multiply_states(S, V, cuts, e)
    e += c  # the logits of (3)
    here = np.flatnonzero((y >= 0) & (y < len(V)))
    target = here, y[here]
    logit = np.zeros(len(S), S.dtype)
    logit[here] = e[target]
    peak = e.max(axis=1)
    e -= peak[:, None]
    np.exp(e, out=e)
    log_sum = peak + np.log(e @ np.ones(len(V), e.dtype))  # the product is four times as fast as e.sum(axis=1)

    def backward(log_Z: Array, weights: Array) -> tuple[Array, Array | Product, Array]:
        # p = factor * e with factor = e^(peak - log Z), a number for each position. So p is never made: only S and dS,
        # which are thin, are multiplied by the factor, and what 1_y takes from p is divided by it and taken from e.
        least = np.finfo(S.dtype).eps ** 2  # too small to matter beside 1, and its inverse is still finite
        factor = np.maximum(np.exp(peak - log_Z), least)  # (n,)
        e[target] -= 1 / factor[here]  # (5): p - 1_y = factor * e
        factor *= weights
        scaled = np.multiply(S, factor[:, None], out=work.array("scaled", S.shape, S.dtype))
        if few:  # to write dV, and to read it for the norm and the step, would take longer than to make it in the step
            dV: Array | Product = Product(e.T, scaled)  # (6)
        else:
            dV = np.matmul(e.T, scaled, out=work.array("dV", V.shape, V.dtype))  # (6)
        dS = work.array("dS", S.shape, S.dtype)
        for rows in cuts:
            add_product(dS, e[:, rows], V[rows], rows.start == 0)  # (7)
        dS *= factor[:, None]
        return dS, dV, factor @ e

    return (log_sum, logit), backward


def multiply_states(S: Array, V: Array, cuts: list[slice], e: Array) -> None:
    """Write S V', of (3), into e (n, rows): few states by these cuts of the rows, so that BLAS makes no copy of V."""
    if len(S) > FEW:
        np.matmul(S, V.T, out=e)
        return
    columns = np.ascontiguousarray(S.T)  # (H, n)
    for rows in cuts:
        e.T[rows] = V[rows] @ columns


def softmax_loss(
    S: Array, y: Array, V: Array, c: Array, cutoffs: tuple[int, ...], work: Workspace, back: bool = True
) -> tuple[Array, Callable[[Array], tuple[Array, Gradient, Gradient]]]:
    """Return the loss -log p of each target: states S (N, H), targets y (N,), V (V + J, H), c (V + J,).

    Returns the losses (N,), in nats, and a function from the weights (N,) with which they enter L to (dS, dV, dc).
    The rows of V are cut into parts, which threads take one at a time; `softmax_parts` says what tails are. For the way
    `back` each part keeps its arrays; without it, each thread uses its own again.
    """
    parts = softmax_parts(S, y, len(V), cutoffs)

    def forward(part: SoftmaxPart) -> Any:
        own_work = work.part(("softmax", part.rows.start if back else threading.get_ident()))
        return part, *softmax_slice(part.S, part.y, V[part.rows], c[part.rows], own_work)

    done: list[Any] = work.each(forward, parts)
    losses, log_Z = np.zeros(len(S), S.dtype), {}
    for j, group in itertools.groupby(done, lambda one: one[0].softmax):
        own, sums, _ = zip(*group, strict=True)
        log_Z[j] = np.logaddexp.reduce([log_sum for log_sum, _ in sums])
        losses[own[0].at] += log_Z[j] - sum(logit for _, logit in sums)  # (4)

    def backward(weights: Array) -> tuple[Array, Gradient, Gradient]:
        def of_part(one: Any) -> Any:
            part, _, part_backward = one
            return part_backward(log_Z[part.softmax], weights[part.at])

        dS, dV, dc = zip(*work.each(of_part, done), strict=True)
        rows = [part.rows for part in parts]
        return add_parts(dS, parts, work), list(zip(rows, dV, strict=True)), list(zip(rows, dc, strict=True))

    return losses, backward


def add_parts(dS: Sequence[Array], parts: list[SoftmaxPart], work: Workspace) -> Array:
    """Add up what the parts found of dS, in the place of the first, which is over all positions (N, H)."""
    total, everywhere = dS[0], sum(part.softmax == 0 for part in parts)

    def add(rows: slice) -> None:
        for own in dS[1:everywhere]:
            total[rows] += own[rows]

    if everywhere > 1:
        work.each(add, runs(0, len(total), PRODUCT_ROWS))
    for own, part in zip(dS[everywhere:], parts[everywhere:], strict=True):
        total[part.at] += own
    return total


def log_softmax(logits: Array) -> Array:
    """Return the logarithm of the softmax of each row."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))  # (3)
    return log_p


def mean_weights(y: Array) -> Array:
    """Weights (T, B) that make L the mean over the positions that are not ignored."""
    counted = y != IGNORED
    return np.asarray(counted / max(1, np.count_nonzero(counted)))


# ---------------------------------------------------------------------------------------------------------------------
# Tails of rare words: p(word) = p(tail) p(word | tail), exactly


class SoftmaxPart(NamedTuple):
    """Some rows of one softmax, and the positions at which it is asked."""

    softmax: int  # 0: over the words before the first cutoff and the tails; j: over the words of tail j
    at: Any  # the positions: a slice, of all; or those whose target lies in the tail, an array (n,)
    rows: slice  # of V and c
    S: Array  # (n, H)
    y: Array  # (n,), the row of each target, counted from the first of `rows`


def softmax_parts(S: Array, y: Array, rows: int, cutoffs: tuple[int, ...]) -> list[SoftmaxPart]:
    """Say which rows of V are to be multiplied with which states: for S (N, H), words y (N,), and V of so many rows.

    Without cutoffs (J = 0) there is one softmax over all words. J cutoffs, ascending ranks of words, split off J tails
    of rarer words, and by (27) p(word) is p(tail) p(word | tail) (Goodman 2001; Mikolov et al. 2011; Grave et al. 2017,
    the adaptive softmax): a softmax over a slot for each tail and the words before the first cutoff at every position,
    and one over a tail's words at the few positions whose target lies there. The first cutoff may be 0: then all words
    are in tails, as Mikolov's are in classes. The rows of V are the J slots, then the words by rank: the row of tail j
    is j - 1, that of word w is w + J.
    """
    J = len(cutoffs)
    edges = [0, *(cutoff + J for cutoff in cutoffs), rows]
    tail = np.searchsorted(np.array(cutoffs, int), y, side="right")  # (N,): 0 for a word before the first cutoff
    order = np.argsort(tail, kind="stable")
    begins = np.searchsorted(tail[order], np.arange(J + 2))  # tail j's positions are order[begins[j] : begins[j + 1]]
    everywhere = np.where(tail > 0, tail - 1, y + J)  # (27): its first factor's rows (N,)
    size = max(SLICE_WORDS, rows // MOST_SLICES)
    spans = [pieces(start, stop, -(-(stop - start) // size)) for start, stop in itertools.pairwise(edges)]
    parts = [SoftmaxPart(0, slice(None), span, S, everywhere - span.start) for span in spans[0]]
    for j in range(1, J + 1):
        at = order[begins[j] : begins[j + 1]]
        if at.size:
            own_S, own_y = S[at], y[at] + J
            parts += [SoftmaxPart(j, at, span, own_S, own_y - span.start) for span in spans[j]]
    return parts


def log_probabilities(S: Array, V: Array, c: Array, cutoffs: tuple[int, ...], work: Workspace) -> Array:
    """Return log p (B, V) of all words that may follow the states S (B, H)."""
    J, edges = len(cutoffs), [*cutoffs, len(V) - len(cutoffs)]
    logits = work.product("logits", V, S.T).T  # (B, V + J)
    log_p = np.empty((len(S), len(V) - J), V.dtype)  # (B, V)

    def normalize(streams: slice) -> None:
        own = logits[streams] + c
        head = log_softmax(own[:, : J + edges[0]])  # (streams, J + words before the first cutoff)
        log_p[streams, : edges[0]] = head[:, J:]
        for j, (start, stop) in enumerate(itertools.pairwise(edges)):
            log_p[streams, start:stop] = head[:, j, None] + log_softmax(own[:, J + start : J + stop])  # (27)

    work.each(normalize, runs(0, len(S), STREAMS))
    return log_p


def output_frequencies(counts: Array, cutoffs: tuple[int, ...] = ()) -> Array:
    """Return the frequency (V + J,) of what each row of V stands for, a tail or a word, from the words' counts (V,).

    A word that never occurs counts as half an occurrence.
    """
    frequency = np.maximum(counts, 0.5)
    frequency = frequency / frequency.sum()
    tails = [frequency[start:stop].sum() for start, stop in itertools.pairwise((*cutoffs, len(frequency)))]
    return np.concatenate((tails, frequency))


# ---------------------------------------------------------------------------------------------------------------------
# Dropout


@dataclass(frozen=True)
class Dropout:
    """Shares of the numbers that are put to zero while training (Srivastava et al. 2014), by where they are."""

    inputs: float = 0.0  # the rows of words
    hidden: float = 0.0  # what a layer hands up to the next
    outputs: float = 0.0  # what the last one hands up to the softmax
    weights: float = 0.0  # W of each layer


def draw_masks(
    settings: ModelSettings, streams: int, dropout: Dropout, generator: np.random.Generator, dtype: DTypeLike
) -> Masks:
    """Draw what to multiply with in a window: 0, or 1 / (1 - rate), so that the expectation stays.

    A stream has the same zeros at all steps of the window (Gal and Ghahramani 2016), and W the same in all streams
    (Merity et al. 2018). Names are "rows" (B, D), "s1" and so on (B, H), "W1" and so on, each if it has a rate.
    """
    B, H, (*lower, last) = streams, settings.hidden, settings.units
    wanted: dict[str, tuple[tuple[int, ...], float]] = {
        f"s{number}": ((B, units), dropout.hidden) for number, units in enumerate(lower, 1)
    }
    wanted["rows"] = (B, settings.embedding or H), dropout.inputs
    wanted[f"s{settings.layers}"] = (B, last), dropout.outputs
    recurrent = {name: shape for name, (shape, *_) in parameter_table(settings).items() if name[0] == "W"}
    wanted |= {name: (shape, dropout.weights) for name, shape in recurrent.items()}
    return {
        name: (generator.random(shape) >= rate).astype(dtype) / np.asarray(1 - rate, dtype)
        for name, (shape, rate) in wanted.items()
        if rate
    }


def drop(values: Array, mask: Array | None, out: Array | None = None) -> Array:
    """Multiply (..., n) by a mask that broadcasts, into `out`; without a mask return the values, and leave `out` alone.

    It is the way forward, and with gradients the way back.
    """
    return values if mask is None else np.multiply(values, mask, out=out)  # (26)


# ---------------------------------------------------------------------------------------------------------------------
# Initial values


class Parameter(NamedTuple):
    """What is to be known of a parameter before there is one."""

    shape: tuple[int, ...]
    fan_in: int = 0  # how many numbers each is summed with; 0: a bias
    role: str = "dense"  # or "inputs", a row for each word; or "outputs", a row for each tail and each word
    ones: slice = slice(0)  # where a bias begins at 1
    gain: float = 1.0  # first values are uniform within gain / sqrt(fan-in)


def parameter_table(settings: ModelSettings) -> dict[str, Parameter]:
    """Name every parameter of a kind of model, in the order in which first values are drawn.

    Forget gates of one layer begin with a bias of 1, those of several with 0. Where words pass several layers, from X1
    on, a gain of sqrt(3) gives their rows a length of about one. Otherwise LSTMs with dropout can stay at the mere
    frequencies of words for epochs (measured, docs/benchmarks.md).
    """
    V, J, cell, several = settings.words, len(settings.cutoffs), CELLS[settings.cell], settings.layers > 1
    D = settings.embedding or settings.hidden
    direct = len(cell.reads or cell.gates) * settings.units[0] == D and not settings.tied  # a word's row is added to z
    gain = math.sqrt(3) if several and not direct else 1.0
    table = {} if settings.tied else {"U": Parameter((V, D), V if direct else D, "inputs", gain=gain)}
    for number, H in enumerate(settings.units, 1):
        reads, recalls, all_of_z = (len(gates or cell.gates) * H for gates in (cell.reads, cell.recalls, cell.gates))
        if number > 1 or not direct:
            table[f"X{number}"] = Parameter((reads, D), D)
        table[f"W{number}"] = Parameter((recalls, H), H)
        ones = cell.part(cell.ones, H) if cell.ones and not several else slice(0)
        table[f"b{number}"] = Parameter((all_of_z,), ones=ones)
        D = H
    outputs = {"V": Parameter((V + J, D), D, "outputs", gain=gain), "c": Parameter((V + J,), role="outputs")}
    return {**table, **outputs}


def dense_size(settings: ModelSettings) -> int:
    """Count the numbers in X and W of all layers."""
    dense = (shape for shape, fan_in, role, *_ in parameter_table(settings).values() if fan_in and role == "dense")
    return sum(map(math.prod, dense))


def initialize(
    settings: ModelSettings, counts: Array, generator: np.random.Generator, dtype: DTypeLike = np.float32
) -> LanguageModel:
    """Draw matrices uniformly from ±gain/sqrt(fan-in), and set c so that the model starts from word frequencies.

    `counts` (V,) says how often each word occurs in training: with c = log p(word) that need not be learned.
    """
    parameters: Parameters = {}
    for name, (shape, fan_in, role, ones, gain) in parameter_table(settings).items():
        if fan_in:
            parameters[name] = np.empty(shape, dtype)
            for _, part in blocks(whole(parameters[name])):  # float64 of a whole table would take twice its memory
                part[...] = generator.uniform(-gain / np.sqrt(fan_in), gain / np.sqrt(fan_in), part.shape)
        elif role == "outputs":
            parameters[name] = np.log(output_frequencies(counts, settings.cutoffs)).astype(dtype)
        else:
            parameters[name] = np.zeros(shape, dtype)
            parameters[name][ones] = 1
    return LanguageModel(settings, parameters)


# ---------------------------------------------------------------------------------------------------------------------
# Stochastic gradient descent


INPUT_RATE = 4.0  # the rate of U's rows beside the rule's: measured, as is that of each cell
OUTPUT_RATE = 0.4  # the same of V's and c's rows
TIED_RATE = 1.2  # the same where V's rows are U's as well
RATED_STATES = 300  # numbers that X, W or an untied V may read at these rates: a step changes a longer sum by more
DECAY_STEPS = 16  # steps whose weight decay is applied at once, as it passes over all rows of U and V
EPSILON, ADAM_MEAN, ADAM_SQUARE = 1e-8, 0.9, 0.999


def joint_norm(gradients: Mapping[str, Gradient], work: Workspace) -> float:
    """Euclidean norm of all gradients taken together: float32 products of short blocks, summed in float64."""
    parts = [values for gradient in gradients.values() for _, values in blocks(gradient)]
    return math.sqrt(max(math.fsum(work.each(sum_of_squares, parts)), 0.0))  # rounded below 0; a nan stays


def sum_of_squares(values: Array | Product) -> float:
    """Add up the squares of numbers; of left @ right that is the sum of (left' left) * (right right')."""
    if isinstance(values, Product):
        return float(np.vdot(values.left.T @ values.left, values.right @ values.right.T))
    return float(np.vdot(values, values))


def word_rates(counts: Array, power: float, cutoffs: tuple[int, ...] = ()) -> Array:
    """Learning rates (V + J,) for the rows of tables of words, before INPUT_RATE and the like: p(word)^-power.

    Only p(w) N positions read row w of U: its gradient and the loss's curvature along it shrink with p(w). Newton's
    method would divide by the curvature, power 1; power 0 is plain SGD. Power 1/2 is the middle at which Adagrad (Duchi
    et al. 2011) arrives by summing squared gradients; here the counts give it beforehand.
    """
    return np.asarray(output_frequencies(counts, cutoffs) ** -power)


class Rule(NamedTuple):
    """What one kind of optimizer computes, elementwise; `Optimizer` does everything else.

    `direction(gradient, memory, time, momentum)` updates the arrays of `memory`, one for each of `slots`, in place, and
    returns what the parameter moves against. `time` counts steps from 1.
    """

    direction: Callable[[Array, list[Array], int, float], Array]
    learning_rate: float  # a good one to begin with
    slots: tuple[str, ...] = ()
    row_rates: bool = False  # whether words' rows and cells have rates of their own; the other rules find theirs
    scale_free: bool = False  # whether a gradient ten times as large gives the same direction


def _plain(gradient: Array, memory: list[Array], time: int, momentum: float) -> Array:
    return gradient


def _momentum(gradient: Array, memory: list[Array], time: int, momentum: float) -> Array:
    """Keep a running sum of gradients, in which each fades by the factor `momentum` at every step (Polyak 1964)."""
    (velocity,) = memory
    velocity *= momentum
    velocity += gradient
    return velocity


def _adagrad(gradient: Array, memory: list[Array], time: int, momentum: float) -> Array:
    """Divide by the root of the sum of squared gradients (Duchi et al. 2011)."""
    (squares,) = memory
    squares += gradient * gradient
    return gradient / (np.sqrt(squares) + EPSILON)


def _adam(gradient: Array, memory: list[Array], time: int, momentum: float) -> Array:
    """Divide a running mean of gradients by the root of one of their squares (Kingma and Ba 2015)."""
    mean, square = memory
    mean += (1 - ADAM_MEAN) * (gradient - mean)
    square += (1 - ADAM_SQUARE) * (gradient * gradient - square)
    direction: Array = mean / (np.sqrt(square / (1 - ADAM_SQUARE**time)) + EPSILON)
    direction /= 1 - ADAM_MEAN**time
    return direction


RULES: dict[str, Rule] = {
    "sgd": Rule(_plain, 0.00075, row_rates=True),
    "momentum": Rule(_momentum, 0.00075, ("velocity",), row_rates=True),
    "adagrad": Rule(_adagrad, 0.05, ("squares",), scale_free=True),
    "adam": Rule(_adam, 0.002, ("mean", "square"), scale_free=True),
}


class Optimizer:
    """Steps against the gradients: for each parameter X, X -= rate * relative rate * direction.

    The rows that a window does not touch are left alone, memory and all, as in lazy variants of these methods; only
    weight decay reaches them. `owed` is the sum of rate * weight decay over steps whose decay is not yet applied.
    """

    def __init__(
        self,
        kind: str,
        parameters: Parameters,
        settings: ModelSettings,
        counts: Array,
        momentum: float = 0.0,
        power: float = 0.5,
        weight_decay: float = 0.0,
    ) -> None:
        self.rule, self.momentum, self.weight_decay, self.owed = RULES[kind], momentum, weight_decay, 0.0
        table, self.rates = parameter_table(settings), Parameters()  # (rows,) or (rows, 1); none: all have the rule's
        if self.rule.row_rates and power:
            rates: dict[str, Any] = {
                "dense": CELLS[settings.cell].rate,
                "inputs": INPUT_RATE * word_rates(counts, power),  # (V,)
                "outputs": (TIED_RATE if settings.tied else OUTPUT_RATE) * word_rates(counts, power, settings.cutoffs),
            }
            for name, value in parameters.items():
                _, reads, role, *_ = table[name]
                looked_up = role == "inputs" or (role == "outputs" and settings.tied)
                share = 1 if looked_up else RATED_STATES / max(RATED_STATES, reads)  # biases read none
                rows = np.broadcast_to(rates[role] * share, len(value))
                self.rates[name] = rows.reshape(-1, *(1 for _ in value.shape[1:])).astype(value.dtype)
        self.decaying = [name for name, (_, fan_in, role, *_) in table.items() if fan_in and role != "dense"]
        self.memory = {
            name: {slot: np.zeros_like(array) for slot in self.rule.slots} for name, array in parameters.items()
        }

    def rate(self, learning_rate: float, predictions: int) -> float:
        """Return the rate for the mean's gradient: a rate of SGD is for the sum over the predictions of a window."""
        return learning_rate * (1 if self.rule.scale_free else predictions)

    def step(
        self,
        parameters: Parameters,
        gradients: Gradients,
        rate: float,
        work: Workspace,
        shrink: float = 1,
        time: int = 1,
    ) -> None:
        """Change the parameters in place, against the gradients times `shrink`. The gradients are overwritten."""
        tasks = [(name, *block) for name, gradient in gradients.items() for block in blocks(gradient)]

        def move(task: tuple[str, Any, Array | Product]) -> None:
            name, rows, values = task
            relative = self.rates[name][rows] if self.rates else 1
            if isinstance(values, Product) and not self.rule.slots:  # then directions are gradients, and may stay thin
                left = values.left * (relative * values.left.dtype.type(rate * shrink))
                parameters[name][rows] -= np.asarray(values._replace(left=left))
                return
            gradient = np.asarray(values)
            if shrink != 1:
                gradient *= shrink
            memory = [slot[rows] for slot in self.memory[name].values()]
            direction = self.rule.direction(gradient, memory, time, self.momentum)
            parameters[name][rows] -= np.multiply(direction, relative * gradient.dtype.type(rate), out=gradient)
            if not isinstance(rows, slice):  # then memory is a copy
                for slot, changed in zip(self.memory[name].values(), memory, strict=True):
                    slot[rows] = changed

        work.each(move, tasks)
        self.owed += rate * self.weight_decay
        if time % DECAY_STEPS == 0:
            self.decay(parameters, work)

    def decay(self, parameters: Parameters, work: Workspace) -> None:
        """Multiply U and V by exp(-owed), for the steps since the last time; to be called before they are used."""
        if not self.owed:
            return
        factor, self.owed = math.exp(-self.owed), 0.0
        tables = [parameters[name] for name in self.decaying]
        parts = [values for table in tables for _, values in blocks(whole(table))]
        work.each(lambda part: np.multiply(part, factor, out=part), parts)


def average(mean: Parameters, parameters: Parameters, share: float, work: Workspace) -> None:
    """Move a running mean of parameters by a share of the way to where they are now."""

    def move(block: tuple[str, Any]) -> None:
        name, rows = block
        mean[name][rows] += mean[name].dtype.type(share) * (parameters[name][rows] - mean[name][rows])

    work.each(move, [(name, rows) for name, value in parameters.items() for rows, _ in blocks(whole(value))])


# ---------------------------------------------------------------------------------------------------------------------
# Memory and threads


BLOCK = 1 << 16  # numbers that stay in a core's cache from one elementwise pass to the next
PRODUCT_ROWS = 128  # rows of a product that one thread computes at a time
STREAMS = 16  # streams whose next words' probabilities one thread computes at a time
FEW = 32  # states, at most, for which the output table is the first matrix of a product, and its gradient a Product
SMALL = 1_000_000  # multiplications in a product of few states: OpenBLAS makes as many without copies of the matrices
SLICE_WORDS = 1000  # words in one slice of the output layer: its product fills a core, its logits stay near it
MOST_SLICES = 100  # slices of a large table, about: few positions ask for each, and calls would take longest
GROUP = 32  # streams, at least, that one thread takes through a window: products of fewer rows are slow
GROUP_NUMBERS = 6400  # numbers in their states, at least: below that, threads wait for the interpreter's lock
MOST_GROUPS = 16  # more streams make groups larger
SPAN_PRODUCTS = 20_000_000  # products with W's numbers in a span of steps, at least: shorter ones wait too long
SPAN_STEPS = 4  # steps in it, at least
READ_ROWS = 512  # rows that are multiplied with X at a time
Tasks = dict[Hashable, tuple[Callable[[], object], Sequence[Hashable]]]  # functions, and the keys of those before them
Values = TypeVar("Values", Array, "Array | Product")
Item = TypeVar("Item")
Result = TypeVar("Result")


class Workspace:
    """Arrays that are used again for each window, and the threads that share the large products.

    Numpy releases the interpreter's lock. Hold BLAS to one thread (threadpoolctl) while a workspace with several is in
    use. How the work is cut never depends on `threads`, so neither does any result.
    """

    def __init__(self, threads: int = 1, pool: ThreadPoolExecutor | None = None) -> None:
        self.threads = threads
        self._pool = pool or (ThreadPoolExecutor(threads - 1) if threads > 1 else None)
        self._buffers: dict[str, Array] = {}
        self._parts: dict[object, Workspace] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Return an uninitialized array, the same memory each time that `name` is asked for."""
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size or buffer.dtype != dtype:
            spare = 0 if buffer is None else size // 2  # windows differ in size; memory that is not used costs nothing
            buffer = self._buffers[name] = np.empty(size + spare, dtype)
        return buffer[:size].reshape(shape)

    def part(self, name: object) -> Workspace:
        """Return the part of the workspace, with the same threads and arrays of its own, that belongs to `name`."""
        if name not in self._parts:
            self._parts[name] = Workspace(self.threads, self._pool)
        return self._parts[name]

    def each(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Call `function` with each item, on all threads. Returns the results in the order of the items."""
        if self._pool is None or len(items) == 1:
            return [function(item) for item in items]
        waiting, results = deque(enumerate(items)), list[Any]([None] * len(items))

        def work_off() -> None:
            while waiting:
                try:
                    number, item = waiting.popleft()
                except IndexError:  # another thread took the last
                    return
                results[number] = function(item)

        self._together(work_off, len(items))
        return results

    def run(self, tasks: Tasks) -> None:
        """Call functions on all threads, each after those whose keys it names; a key that there is not counts as done.

        Of those that can be called the earliest in `tasks` is; so each stands behind what it waits for.
        """
        if self._pool is None or len(tasks) == 1:
            for function, _ in tasks.values():
                function()
            return
        waiting, open_keys, changed = dict(tasks), set(tasks), threading.Condition()

        def ready() -> Iterator[Hashable]:
            return (key for key, (_, before) in waiting.items() if open_keys.isdisjoint(before))

        def work_off() -> None:
            try:
                while True:
                    with changed:
                        changed.wait_for(lambda: not waiting or any(True for _ in ready()))
                        if not waiting:
                            return
                        key = next(ready())
                        function, _ = waiting.pop(key)
                    function()
                    with changed:
                        open_keys.discard(key)
                        changed.notify_all()
            except BaseException:
                with changed:
                    waiting.clear()  # the other threads end too
                    changed.notify_all()
                raise

        self._together(work_off, len(tasks))

    def _together(self, work_off: Callable[[], None], most: int) -> None:
        """Call a function on this thread and, as far as they come to it, on others."""
        assert self._pool is not None
        # Each thread works in a copy of this one's context, so that np.errstate holds there too.
        calls: list[Future[None]] = []
        try:
            calls += (self._pool.submit(copy_context().run, work_off) for _ in range(min(self.threads, most) - 1))
            work_off()
        finally:  # none may go on when the caller does
            failures = [call.exception() for call in calls if not call.cancel()]
        for failure in filter(None, failures):
            raise failure

    def product(self, name: str, left: Array, right: Array) -> Array:
        """Multiply two matrices into the array called `name`, PRODUCT_ROWS rows of the first at a time."""
        out = self.array(name, (len(left), right.shape[1]), left.dtype)
        self.each(lambda rows: np.matmul(left[rows], right, out=out[rows]), runs(0, len(left), PRODUCT_ROWS))
        return out

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()


def runs(start: int, stop: int, size: int) -> list[slice]:
    """Cut a range into runs of so many, the last one shorter."""
    return [slice(begin, min(begin + size, stop)) for begin in range(start, stop, size)]


def pieces(start: int, stop: int, count: int) -> list[slice]:
    """Cut a range into so many pieces of about equal size."""
    edges = [start + (stop - start) * k // count for k in range(count + 1)]
    return [slice(*edge) for edge in itertools.pairwise(edges)]


def stream_groups(streams: int, hidden: int) -> list[slice]:
    """Cut B streams of H units into groups, each of which walks through a whole window on one thread."""
    return pieces(0, streams, max(1, min(streams // GROUP, streams * hidden // GROUP_NUMBERS, MOST_GROUPS)))


class Product(NamedTuple):
    """Left (rows, n) times right (n, H), an array (rows, H) that np.asarray makes where it is used: memory is slow."""

    left: Array
    right: Array

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Array:
        return np.asarray(np.dot(self.left, self.right), dtype)  # np.matmul is slow where n is 1


def whole(values: Array) -> Rows:
    """Return the values (rows, ...) of all rows of a table as a gradient."""
    return [(slice(0, len(values)), values)]


def in_arrays(gradient: Gradient) -> Rows:
    """Return a gradient without products."""
    return [(rows, np.asarray(values)) for rows, values in gradient]


def blocks(gradient: Sequence[tuple[Any, Values]]) -> Iterator[tuple[Any, Values]]:
    """Cut a gradient's arrays into blocks of about BLOCK numbers; yields the rows of the table, and their values."""
    for rows, values in gradient:
        if isinstance(values, Product):
            yield rows, values
            continue
        for run in runs(0, len(values), max(1, BLOCK * len(values) // max(1, values.size))):
            own = slice(rows.start + run.start, rows.start + run.stop) if isinstance(rows, slice) else rows[run]
            yield own, values[run]
