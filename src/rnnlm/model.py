"""The mathematics of a word-level recurrent language model, from the forward pass to the step of SGD.

This file imports numpy and the standard library only; it can be copied out and read alone. Equation numbers are those
of docs/derivation.md, where each one is derived from the chain rule.

Letters, everywhere: T steps, B streams, N = T*B positions, V words, D numbers in a word's row, H hidden units, G gates,
M states of a cell, J tails, L layers, K truncation.
`dX` has X's shape and is the gradient with respect to X: below, of the sum of all E_t; in the code each E_t has a
weight, which is 1/N for their mean, the loss L. A prime (W') is a transpose. The B streams are the batch. W and b of
layer 1 are called W1 and b1.

Forward, for each stream: word x_t comes in, the state s_t sums up all that was read, p_t says which word comes next.

    (1)  z_t = U[x_t] + W s_{t-1} + b           U (V, D): a row for each word;  W (G*H, H);  b (G*H,)
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

A word's row may go through a matrix, X U[x_t] in place of U[x_t] in (1). The input of a layer above always does, and is
the s_t of the layer below. Then dX = sum_t sum_{k <= t} delta_t(k) U[x_k]' and dU[x_k] += X' delta_t(k).

References: Elman (1990), "Finding structure in time", the network; Werbos (1990), "Backpropagation through time: what
it does and how to do it", (8) to (11); Williams and Peng (1990), the truncation; Mikolov et al. (2010), "Recurrent
neural network based language model", the language model; Pascanu et al. (2013), clipping by the joint norm.

A function with a gradient returns `(output, backward)`, and `backward` takes the gradient of its output.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]
Parameters = dict[str, Array]
Gradient = list[tuple[Any, Array]]  # (rows, values): rows a slice or an array of ids, disjoint; all others are zero
Gradients = dict[str, Gradient]

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
    embedding: int | None = None  # D, with a matrix X1; None: a word's row is added to z as it is


@dataclass(eq=False)
class LanguageModel:
    """Parameters, and the functions of them that training, scoring and generation need."""

    settings: ModelSettings
    parameters: Parameters

    def start(self, streams: int) -> Array:
        """Return the states (L, M, B, H) before the first word of each of B streams: zero."""
        shape = (self.settings.layers, len(CELLS[self.settings.cell].states), streams, self.settings.hidden)
        return np.zeros(shape, self.parameters["V"].dtype)

    def read(
        self, x: Array, states: Array, work: Workspace, dropout: Dropout | None = None
    ) -> tuple[tuple[Array, Array], Callable[[Array], Gradients]]:
        """Read words x (T, B) from the states before (L, M, B, H): s (T, B, H), the states after, and backward."""
        settings, find = self.settings, self.parameters.get
        layers = [Layer(*(find(f"{name}{number}") for name in "XWb")) for number in range(1, settings.layers + 1)]
        keep = (x != SENTENCE_END) | settings.carry_state  # (T, B)
        rows, embed_backward = embed(x, self.parameters["U"], dropout, work)
        (s, states), recur_backward = recur(rows, keep, states, layers, CELLS[settings.cell], settings.truncate, work)
        s, drop_backward = drop(s, dropout, work.part("outputs"))

        def backward(ds: Array) -> Gradients:
            drows, gradients = recur_backward(drop_backward(ds))
            return {"U": embed_backward(drows), **gradients}

        return (s, states), backward

    def losses(
        self, x: Array, y: Array, states: Array, work: Workspace, dropout: Dropout | None = None
    ) -> tuple[tuple[Array, Array], Callable[[Array], Gradients]]:
        """Return the loss -log p of each target of a window, with dropout where it is given.

        Takes words x and targets y (T, B), some of them perhaps IGNORED, and the states before the window (L, M, B, H).
        Returns the losses (T, B) in nats, zero where ignored, with the states after the window; and a function from the
        weights (T, B) of the losses in L to the gradients. It reads, and writes over, what this call left in `work`:
        call it once, before the next window.
        """
        (s, states), read_backward = self.read(x, states, work, dropout)
        counted = np.flatnonzero(y.reshape(-1) != IGNORED)
        at: Any = counted if counted.size < y.size else slice(None)  # mostly a slice, which copies nothing
        S, V, c = s.reshape(y.size, -1), self.parameters["V"], self.parameters["c"]  # S (N, H)
        losses = np.zeros(y.size, S.dtype)
        losses[at], softmax_backward = softmax_loss(S[at], y.reshape(-1)[at], V, c, self.settings.cutoffs, work)

        def backward(weights: Array) -> Gradients:
            dS, dV, dc = softmax_backward(weights.reshape(-1)[at].astype(S.dtype))
            if counted.size < y.size:
                counted_dS, dS = dS, np.zeros_like(S)
                dS[at] = counted_dS
            return {**read_backward(dS.reshape(s.shape)), "V": dV, "c": dc}

        return (losses.reshape(y.shape), states), backward

    def step(self, words: Array, states: Array, work: Workspace) -> tuple[Array, Array]:
        """Read one word a stream (B,), and return log p of every word that may follow (B, V), and the states after."""
        (s, states), _ = self.read(words[None], states, work)
        return log_probabilities(s[0], self.parameters["V"], self.parameters["c"], self.settings.cutoffs, work), states


# ---------------------------------------------------------------------------------------------------------------------
# Words to rows of numbers


def embed(x: Array, U: Array, dropout: Dropout | None, work: Workspace) -> tuple[Array, Callable[[Array], Gradient]]:
    """Look words x (T, B) up in U (V, D): the U[x_t] of (1), (T, B, D)."""
    rows = work.array("rows", (*x.shape, U.shape[1]), U.dtype)
    np.take(U, x, axis=0, out=rows, mode="clip")  # U[x_t] in (1); "clip" spares a copy, ids were checked when encoded
    rows, drop_backward = drop(rows, dropout, work.part("inputs"))

    def backward(drows: Array) -> Gradient:
        return [sum_rows(x.reshape(-1), drop_backward(drows).reshape(x.size, -1))]  # (11)

    return rows, backward


def sum_rows(ids: Array, values: Array) -> tuple[Array, Array]:
    """Add up the rows of values (N, D) that belong to the same id (N,). Returns the ids, ascending, and their sums."""
    order = np.argsort(ids, kind="stable")  # (N,)
    unique, starts, counts = np.unique(ids[order], return_index=True, return_counts=True)
    sums = values[order[starts]]  # (different ids, D)
    for word in np.flatnonzero(counts > 1):  # most words stand alone, and are done
        np.add.reduce(values[order[starts[word] : starts[word] + counts[word]]], axis=0, out=sums[word])
    return unique, sums


# ---------------------------------------------------------------------------------------------------------------------
# The cells: elementwise functions, in pairs. All products and the walk through time are `recur`'s.


class Cell(NamedTuple):
    """What one kind of recurrent unit computes from z_t and the states before.

    `forward(z, before, after)` reads z (..., B, G*H) and the M states `before`, each (..., B, H), and writes the states
    `after`, the first of which is the output s. It may leave in z what `backward` will want.
    `backward(ds, z, before, after)` returns delta = dE/dz, and turns ds (M, ..., B, H), the gradient of the states
    after, in place into that of the states before as far as it does not pass W. Both work at one step or at many.
    """

    forward: Callable[[Array, Array, Array], None]
    backward: Callable[[Array, Array, Array, Array], Array]
    gates: str = "z"  # a letter for each of the G parts of z
    states: str = "s"  # a letter for each of the M states
    reads: str = ""  # the gates that a word's row, or the layer below, is added to; none named: all
    recalls: str = ""  # the gates that W s_{t-1} is added to; none named: all
    ones: str = ""  # the gates whose biases begin at 1

    def part(self, gates: str, hidden: int) -> slice:
        """Say where neighboring gates lie in z; none named: all of z."""
        start = self.gates.index(gates or self.gates)
        return slice(start * hidden, (start + len(gates or self.gates)) * hidden)


def elman(z: Array, before: Array, after: Array) -> None:
    """Elman (1990): s = tanh(z)."""
    (s,) = after
    np.tanh(z, out=s)  # (2)


def elman_backward(ds: Array, z: Array, before: Array, after: Array) -> Array:
    """Return delta = ds * (1 - s^2): the only way back is through W."""
    (s,) = after
    delta: Array = ds[0] * (1 - s * s)  # (8), and the second half of (9)
    ds[0] = 0
    return delta


CELLS: dict[str, Cell] = {"elman": Cell(elman, elman_backward)}


# ---------------------------------------------------------------------------------------------------------------------
# The walk through time, and back


class Layer(NamedTuple):
    """The parameters of one recurrent layer."""

    X: Any  # (rows of z that are read into, D or H); None: what comes in is added as it is
    W: Any  # (rows of z that are recalled into, H)
    b: Any  # (G*H,)


class Walked(NamedTuple):
    """One layer of a window, walked through; what the way back needs stays in the closures."""

    s: Array  # (T, B, H), the outputs
    states: Array  # (M, B, H), after the window
    dz: Array  # (T, B, G*H), where the way back puts the sum of delta_t(k) over t, for each k
    back: Callable[[slice], Callable[[Array, Any, bool], Array]]  # for some streams, what `step_back` does
    inputs: Callable[[Array], Array]  # from dz of some steps to the gradient of what came in there
    weights: Callable[[], tuple[Array | None, Array, Array]]  # from dz to dX, dW, db


def walk(inputs: Array, keep: Array, states: Array, layer: Layer, cell: Cell, work: Workspace) -> Walked:
    """Walk one layer through a window: inputs (T, B, D), keep (T, B, 1), states before it (M, B, H)."""
    (T, B, D), (X, W, b), H, M = inputs.shape, layer, layer.W.shape[1], len(cell.states)
    reads, recalls = cell.part(cell.reads, H), cell.part(cell.recalls, H)
    path = work.array("states", (M, T + 1, B, H), W.dtype)
    before = work.array("before", (M, T, B, H), W.dtype)  # the states before each step, zero where a sentence begins
    after, path[:, 0] = path[:, 1:], states  # after (M, T, B, H)
    z, dz = (work.array(name, (T, B, len(b)), W.dtype) for name in ("z", "dz"))  # both (T, B, G*H)
    came_in = inputs if X is None else work.product("XU", inputs.reshape(T * B, D), X.T).reshape(T, B, -1)

    def forward(streams: slice) -> None:
        own_path, own_before, own_z = path[:, :, streams], before[:, :, streams], z[:, streams]
        own_z[...] = b
        own_z[..., reads] += came_in[:, streams]  # (1), what needs no state
        recalled, W_transposed = own_z[..., recalls], W.T
        for t in range(T):
            np.multiply(own_path[:, t], keep[t, streams], out=own_before[:, t])
            recalled[t] += own_before[0, t] @ W_transposed  # (1)
            cell.forward(own_z[t], own_before[:, t], own_path[:, t + 1])

    work.each(forward, stream_groups(B, H))

    def back_to_inputs(dz: Array) -> Array:
        dinputs: Array = dz[..., reads] if X is None else dz[..., reads] @ X
        return dinputs

    def weights() -> tuple[Array | None, Array, Array]:
        flat, s = dz.reshape(T * B, -1), before[0].reshape(T * B, H)
        dX = None if X is None else work.product("dX", flat[:, reads].T, inputs.reshape(T * B, D))
        return dX, work.product("dW", flat[:, recalls].T, s), flat.sum(axis=0)  # (10), (11)

    def back(streams: slice) -> Callable[[Array, Any, bool], Array]:
        own = (z[:, streams], before[:, :, streams], after[:, :, streams], keep[:, streams])
        return lambda ds, at, last: step_back(ds, at, last, W, recalls, cell, *own)

    return Walked(after[0], path[:, T].copy(), dz, back, back_to_inputs, weights)


def step_back(
    ds: Array,
    at: Any,
    last: bool,
    W: Array,
    recalls: slice,
    cell: Cell,
    z: Array,
    before: Array,
    after: Array,
    keep: Array,
) -> Array:
    """Return delta `at` a step or several, from the gradient ds (M, ..., B, H) of the states there.

    Unless it is the last that is wanted, ds becomes in place the gradient of the states a step before.
    """
    delta = cell.backward(ds, z[at], before[:, at], after[:, at])  # (..., B, G*H)
    if not last:
        ds[0] += (delta.reshape(-1, delta.shape[-1])[:, recalls] @ W).reshape(ds[0].shape)  # (9)
        ds *= keep[at]  # nothing reaches across the beginning of a sentence
    return delta


def recur(
    inputs: Array, keep: Array, states: Array, layers: list[Layer], cell: Cell, truncate: int | None, work: Workspace
) -> tuple[tuple[Array, Array], Callable[[Array], tuple[Array, Gradients]]]:
    """Walk L layers through a window: each reads the outputs of the one below.

    Takes inputs (T, B, D), keep (T, B), false where a step begins a sentence and forgets the state, and the states
    before the window (L, M, B, H), which are constants. Returns s (T, B, H) with the states after; and a function from
    ds to the gradients of inputs and parameters. Errors reach `truncate` steps back in every layer; None: to the start.
    """
    keep = keep[..., None].astype(states.dtype)  # (T, B, 1), 0 or 1
    walked: list[Walked] = []
    for number, layer in enumerate(layers):
        below = walked[-1].s if walked else inputs
        walked.append(walk(below, keep, states[number], layer, cell, work.part(f"layer {number + 1}")))

    def backward(ds: Array) -> tuple[Array, Gradients]:
        def back(streams: slice) -> None:
            if truncate is None:
                by_columns(ds, walked, streams)
            else:
                by_diagonals(ds, walked, streams, truncate)

        work.each(back, stream_groups(*ds.shape[1:]))
        gradients: Gradients = {}
        for number, one in enumerate(walked, 1):
            found = {f"{name}{number}": value for name, value in zip("XWb", one.weights(), strict=True)}
            gradients |= {name: [(slice(0, len(value)), value)] for name, value in found.items() if value is not None}
        return walked[0].inputs(walked[0].dz), gradients

    return (walked[-1].s, np.stack([one.states for one in walked])), backward


def by_columns(ds: Array, walked: list[Walked], streams: slice) -> None:
    """Backpropagate through some streams without truncation, from the top layer down.

    Lay delta_t(k) out with a row for each error t, a column for each step k. The sum of a column, delta(k) = sum over
    t >= k of delta_t(k), obeys the same recursion as each delta_t: one pass serves all errors.
    """
    ds = ds[:, streams]  # (T, B, H)
    for one in reversed(walked):
        dstates = np.zeros((len(one.states), *ds.shape[1:]), ds.dtype)  # (M, B, H)
        back, dz = one.back(streams), one.dz[:, streams]  # dz (T, B, G*H)
        for t in reversed(range(len(ds))):
            dstates[0] += ds[t]
            dz[t] = back(dstates, t, t == 0)
        if one is not walked[0]:
            ds = one.inputs(dz)


def by_diagonals(ds: Array, walked: list[Walked], streams: slice, truncate: int) -> None:
    """Backpropagate through some streams with errors that reach `truncate` steps back, lag by lag, all layers together.

    At lag j, row k of `delta` is delta_{k+j}(k), and row k of `dstates` is dE_{k+j}/ds_k: a diagonal of the layout in
    `by_columns`. What a layer hands down has spent that many steps of its reach: alone, each layer would reach too far.
    """
    ds = ds[:, streams]  # (T, B, H)
    dstates = [np.zeros((len(one.states), *ds.shape), ds.dtype) for one in walked]  # (M, T - lag, B, H) for each layer
    back = [one.back(streams) for one in walked]
    for one in walked:
        one.dz[:, streams] = 0
    last = min(truncate, len(ds) - 1)
    for lag in range(last + 1):
        at = slice(0, len(ds) - lag)
        handed_down: Any = ds if lag == 0 else 0
        for number in reversed(range(len(walked))):
            dstates[number][0] += handed_down
            delta = back[number](dstates[number], at, lag == last)  # (T - lag, B, G*H)
            dstates[number] = dstates[number][:, 1:]  # no state of this window lies before its first step
            walked[number].dz[at, streams] += delta
            handed_down = walked[number].inputs(delta) if number else 0


# ---------------------------------------------------------------------------------------------------------------------
# The output layer


def softmax_slice(
    S: Array, y: Array, V: Array, c: Array, work: Workspace
) -> tuple[tuple[Array, Array], Callable[[Array, Array, Array, Array], Array]]:
    """Compute some rows' part of a softmax: states S (n, H), V (rows, H), c (rows,), and y (n,) counted from its first.

    Returns the logarithm of the sum of its exponentials (n,), and the targets' logits (n,), zero where the target is
    not among these rows; and a function from the logarithm of the whole sum, log Z (n,), and the losses' weights (n,),
    which writes dV and dc, to dS.
    """
    e = work.array("e", (len(S), len(V)), S.dtype)  # (n, rows)
    np.matmul(S, V.T, out=e)
    e += c  # the logits of (3)
    here = np.flatnonzero((y >= 0) & (y < len(V)))
    target = here, y[here]
    logit = np.zeros(len(S), S.dtype)
    logit[here] = e[target]
    peak = e.max(axis=1)
    e -= peak[:, None]
    np.exp(e, out=e)
    log_sum = peak + np.log(e @ np.ones(len(V), e.dtype))  # the product is four times as fast as e.sum(axis=1)

    def backward(log_Z: Array, weights: Array, dV: Array, dc: Array) -> Array:
        # p = factor * e with factor = e^(peak - log Z), a number for each position. So p is never made: only S and dS,
        # which are thin, are multiplied by the factor, and what 1_y takes from p is divided by it and taken from e.
        least = np.finfo(S.dtype).eps ** 2  # too small to matter beside 1, and its inverse is still finite
        factor = np.maximum(np.exp(peak - log_Z), least)  # (n,)
        e[target] -= 1 / factor[here]  # (5): p - 1_y = factor * e
        factor *= weights
        scaled = np.multiply(S, factor[:, None], out=work.array("scaled", S.shape, S.dtype))
        np.matmul(e.T, scaled, out=dV)  # (6)
        np.matmul(factor, e, out=dc)
        dS = np.matmul(e, V, out=work.array("dS", S.shape, S.dtype))  # (7)
        dS *= factor[:, None]
        return dS

    return (log_sum, logit), backward


def softmax_loss(
    S: Array, y: Array, V: Array, c: Array, cutoffs: tuple[int, ...], work: Workspace
) -> tuple[Array, Callable[[Array], tuple[Array, Gradient, Gradient]]]:
    """Return the loss -log p of each target: states S (N, H), targets y (N,), V (V + J, H), c (V + J,).

    Returns the losses (N,), in nats, and a function from the weights (N,) with which they enter L to (dS, dV, dc).
    The rows of V are cut into parts, which threads take one at a time; `softmax_parts` says what tails are.
    """
    parts = softmax_parts(S, y, len(V), cutoffs)

    def forward(part: SoftmaxPart) -> Any:
        own_work = work.part(("softmax", part.rows.start))
        return part, *softmax_slice(part.S, part.y, V[part.rows], c[part.rows], own_work)

    done: list[Any] = work.each(forward, parts)
    losses, log_Z = np.zeros(len(S), S.dtype), {}
    for j, group in itertools.groupby(done, lambda one: one[0].softmax):
        own, sums, _ = zip(*group, strict=True)
        log_Z[j] = np.logaddexp.reduce([log_sum for log_sum, _ in sums])
        losses[own[0].at] += log_Z[j] - sum(logit for _, logit in sums)  # (4)

    def backward(weights: Array) -> tuple[Array, Gradient, Gradient]:
        dV, dc = (work.array(name, value.shape, value.dtype) for name, value in (("dV", V), ("dc", c)))

        def back(one: Any) -> Array:
            part, _, part_backward = one
            dS: Array = part_backward(log_Z[part.softmax], weights[part.at], dV[part.rows], dc[part.rows])
            return dS

        dS = add_parts(work.each(back, done), parts, work)
        return dS, [(part.rows, dV[part.rows]) for part in parts], [(part.rows, dc[part.rows]) for part in parts]

    return losses, backward


def add_parts(dS: list[Array], parts: list[SoftmaxPart], work: Workspace) -> Array:
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
    of rarer words, and p(word) becomes p(tail) p(word | tail) (Goodman 2001; Mikolov et al. 2011; Grave et al. 2017,
    the adaptive softmax): a softmax over a slot for each tail and the words before the first cutoff at every position,
    and one over a tail's words at the few positions whose target lies there. The rows of V are the J slots, then the
    words by rank: the row of tail j is j - 1, that of word w is w + J.
    """
    J = len(cutoffs)
    edges = [0, *(cutoff + J for cutoff in cutoffs), rows]
    tail = np.searchsorted(np.array(cutoffs, int), y, side="right")  # (N,): 0 for a word before the first cutoff
    order = np.argsort(tail, kind="stable")
    begins = np.searchsorted(tail[order], np.arange(J + 2))  # tail j's positions are order[begins[j] : begins[j + 1]]
    everywhere = np.where(tail > 0, tail - 1, y + J)  # (N,)
    spans = [pieces(start, stop, -(-(stop - start) // SLICE_WORDS)) for start, stop in itertools.pairwise(edges)]
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
            log_p[streams, start:stop] = head[:, j, None] + log_softmax(own[:, J + start : J + stop])

    work.each(normalize, runs(0, len(S), STREAMS))
    return log_p


def output_frequencies(counts: Array, cutoffs: tuple[int, ...] = ()) -> Array:
    """Return the frequency (V + J,) of what each row of V stands for, a tail or a word, from the words' counts (V,).

    A word that never occurs counts as half an occurrence.
    """
    frequency = np.maximum(counts, 0.5)
    frequency = frequency / frequency.sum()
    tails = [frequency[start:stop].sum() for start, stop in itertools.pairwise((*cutoffs, len(frequency)))]
    return np.concatenate((tails if cutoffs else [], frequency))


# ---------------------------------------------------------------------------------------------------------------------
# Dropout


class Dropout(NamedTuple):
    """Zeros to put into the rows read from U and into the outputs, while training (Srivastava et al. 2014)."""

    rate: float  # the probability of a zero; the rest is divided by 1 - rate, so that the expectation stays
    generator: np.random.Generator


def drop(values: Array, dropout: Dropout | None, work: Workspace) -> tuple[Array, Callable[[Array], Array]]:
    """Put zeros at random into a copy of `values`. Returns it, and a function from its gradient to that of `values`."""
    if dropout is None:
        return values, lambda dvalues: dvalues
    mask = work.array("mask", values.shape, values.dtype)
    dropout.generator.random(dtype=values.dtype, out=mask)
    np.greater_equal(mask, dropout.rate, out=mask)
    mask *= 1 / (1 - dropout.rate)
    return np.multiply(values, mask, out=work.array("kept", values.shape, values.dtype)), lambda dvalues: dvalues * mask


# ---------------------------------------------------------------------------------------------------------------------
# Initial values


class Parameter(NamedTuple):
    """What is to be known of a parameter before there is one."""

    shape: tuple[int, ...]
    fan_in: int = 0  # first values are uniform within 1/sqrt(fan-in); 0: a bias
    role: str = "dense"  # or "inputs", a row for each word; or "outputs", a row for each tail and each word
    ones: slice = slice(0)  # where a bias begins at 1


def parameter_table(settings: ModelSettings) -> dict[str, Parameter]:
    """Name every parameter of a kind of model, in the order in which first values are drawn."""
    V, H, cell = settings.words, settings.hidden, CELLS[settings.cell]
    reads, recalls, all_of_z = (len(gates or cell.gates) * H for gates in (cell.reads, cell.recalls, cell.gates))
    D, rows = settings.embedding or reads, V + len(settings.cutoffs)
    table = {"U": Parameter((V, D), V, "inputs")}
    for number in range(1, settings.layers + 1):
        if number > 1 or settings.embedding:
            table[f"X{number}"] = Parameter((reads, D), D)
        table[f"W{number}"] = Parameter((recalls, H), H)
        table[f"b{number}"] = Parameter((all_of_z,), ones=cell.part(cell.ones, H) if cell.ones else slice(0))
        D = H
    return {**table, "V": Parameter((rows, H), H, "outputs"), "c": Parameter((rows,), role="outputs")}


def initialize(
    settings: ModelSettings, counts: Array, generator: np.random.Generator, dtype: DTypeLike = np.float32
) -> LanguageModel:
    """Draw matrices uniformly from ±1/sqrt(fan-in), and set c so that the model starts from word frequencies.

    `counts` (V,) says how often each word occurs in training: with c = log p(word) that need not be learned.
    """
    parameters: Parameters = {}
    for name, (shape, fan_in, role, ones) in parameter_table(settings).items():
        if fan_in:
            parameters[name] = generator.uniform(-1 / np.sqrt(fan_in), 1 / np.sqrt(fan_in), shape).astype(dtype)
        elif role == "outputs":
            parameters[name] = np.log(output_frequencies(counts, settings.cutoffs)).astype(dtype)
        else:
            parameters[name] = np.zeros(shape, dtype)
            parameters[name][ones] = 1
    return LanguageModel(settings, parameters)


# ---------------------------------------------------------------------------------------------------------------------
# Stochastic gradient descent


INPUT_RATE = 4.0  # the rate of U's rows beside that of the dense parameters: measured, see docs/benchmarks.md
OUTPUT_RATE = 0.4  # the same of V's and c's rows
DECAY_STEPS = 16  # steps whose weight decay is applied at once, as it passes over all rows of U and V
EPSILON, ADAM_MEAN, ADAM_SQUARE = 1e-8, 0.9, 0.999


def joint_norm(gradients: Mapping[str, Gradient], work: Workspace) -> float:
    """Euclidean norm of all gradients taken together: float32 products of short blocks, summed in float64."""
    blocks = [values.reshape(-1) for gradient in gradients.values() for _, values in _blocks(gradient)]
    return math.sqrt(math.fsum(work.each(lambda block: float(np.dot(block, block)), blocks)))


def word_rates(counts: Array, power: float, cutoffs: tuple[int, ...] = ()) -> Array:
    """Learning rates for the rows of U, V and c, relative to that of W: p(word)^-power.

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
    row_rates: bool = False  # whether rows of words have rates of their own, `word_rates`; the other rules find theirs
    scale_free: bool = False  # whether a gradient ten times as large gives the same direction


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
    "sgd": Rule(lambda gradient, *_: gradient, 0.00075, row_rates=True),
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
        table, (inputs, outputs) = (
            parameter_table(settings),
            (word_rates(counts, power, c) for c in ((), settings.cutoffs)),
        )
        rows = {"inputs": INPUT_RATE * inputs, "outputs": OUTPUT_RATE * outputs}  # (V,), (V + J,)
        self.rates = {
            name: rows[role].reshape(-1, *(1 for _ in shape[1:])).astype(parameters[name].dtype)
            for name, (shape, _, role, _) in table.items()
            if self.rule.row_rates and power and role in rows
        }
        self.decaying = [name for name, (_, fan_in, role, _) in table.items() if fan_in and role in rows]
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
        tasks = [(name, *block) for name, gradient in gradients.items() for block in _blocks(gradient)]

        def move(task: tuple[str, Any, Array]) -> None:
            name, rows, gradient = task
            if shrink != 1:
                gradient *= shrink
            memory = [slot[rows] for slot in self.memory[name].values()]
            direction = self.rule.direction(gradient, memory, time, self.momentum)
            relative = self.rates[name][rows] if name in self.rates else 1
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
        blocks = [values for table in tables for _, values in _blocks([(slice(0, len(table)), table)])]
        work.each(lambda block: np.multiply(block, factor, out=block), blocks)


# ---------------------------------------------------------------------------------------------------------------------
# Memory and threads


BLOCK = 1 << 16  # numbers that stay in a core's cache from one elementwise pass to the next
PRODUCT_ROWS = 128  # rows of a product that one thread computes at a time
STREAMS = 16  # streams whose next words' probabilities one thread computes at a time
SLICE_WORDS = 1000  # words in one slice of the output layer: its product fills a core, its logits stay near it
GROUP = 32  # streams, at least, that one thread takes through a window: products of fewer rows are slow
GROUP_NUMBERS = 6400  # numbers in their states, at least: below that, threads wait for the interpreter's lock
Item = TypeVar("Item")
Result = TypeVar("Result")


class Workspace:
    """Arrays that are used again for each window, and the threads that share the large products.

    Numpy releases the interpreter's lock. Hold BLAS to one thread (threadpoolctl) while a workspace with several is in
    use. How the work is cut never depends on `threads`, so neither does any result.
    """

    def __init__(self, threads: int = 1, pool: ThreadPoolExecutor | None = None) -> None:
        self.threads = threads
        self._pool = pool or (ThreadPoolExecutor(threads) if threads > 1 else None)
        self._buffers: dict[str, Array] = {}
        self._parts: dict[object, Workspace] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Return an uninitialized array, the same memory each time that `name` is asked for."""
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size or buffer.dtype != dtype:
            buffer = self._buffers[name] = np.empty(size, dtype)
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

        # Each thread works in a copy of this one's context, so that np.errstate holds there too.
        for call in [self._pool.submit(copy_context().run, work_off) for _ in range(min(self.threads, len(items)))]:
            call.result()
        return results

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
    return pieces(0, streams, max(1, min(streams // GROUP, streams * hidden // GROUP_NUMBERS)))


def _blocks(gradient: Gradient) -> Iterator[tuple[Any, Array]]:
    """Cut a gradient into blocks of about BLOCK numbers; yields the rows of the table, and their values."""
    for rows, values in gradient:
        step = max(1, BLOCK * len(values) // max(1, values.size))
        if len(values) <= step:
            yield rows, values
            continue
        for run in runs(0, len(values), step):
            own = slice(rows.start + run.start, rows.start + run.stop) if isinstance(rows, slice) else rows[run]
            yield own, values[run]
