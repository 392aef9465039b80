"""The referee: compares each gradient of model.py with differences of the losses that it claims to describe.

It knows the public names of model.py and nothing of how a gradient is computed there: it changes parameters, asks for
losses, and subtracts. In float64, with x moved along a direction d,

    L'(d) = (8 [L(x + hd) - L(x - hd)] - [L(x + 2hd) - L(x - 2hd)]) / 12h,    wrong by h^4 L'''''(d) / 30 and rounding.

Of a small model every coordinate of every parameter is such a direction. Of a model of any size, random directions are:
an error of any kind in the gradient shows along almost all of them, in proportion to its size.

**The truncated gradient** is the derivative of no loss: with `truncate` K the error of output t stops K steps back,
while the loss goes on depending on what came before. It is a sum of derivatives of as many functions as there are
outputs. Let f_t(x; s) be E_t as a function of parameters x and of a state s that step t-K starts from, and let s*_k be
the states that were met with the parameters x* as they are. Then what `backward` must return is

    sum_t  weight_t  d/dx f_t(x; s*_{t-K-1})  at x = x*,          s* held constant: it is a number, not a function of x.

f_t is the loss of the last target of the window t-K .. t, read from state s*_{t-K-1}: a short window, with all targets
but one IGNORED, gives it. Where t <= K there are only the window's own steps, and f_t starts from the state before the
window. So the sum falls into short windows, all of which may be read side by side as streams. K+1 or K-1 in place of K
is another sum, and fails. Dropout's zeros are numbers too: each step keeps its own in every window that holds it.

**What passes.** The relative error of a coordinate is |a - n| / max(|a|, |n|, FLOOR * m), a the analytic and n the
numeric value, m the parameter's largest |n|: FLOOR keeps rounding out of coordinates that are next to nothing. A row
passes if its worst error is a number that is not above the tolerance. NaN and infinities are infinitely wrong; so is a
gradient that is missing, unasked for, of another shape or precision, and one that is zero throughout while the
differences are zero too, for then nothing was compared.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from rnnlm.model import (
    CELLS,
    IGNORED,
    NO_MASKS,
    SENTENCE_END,
    Array,
    Dropout,
    Gradient,
    Gradients,
    LanguageModel,
    ModelSettings,
    Parameters,
    Workspace,
    draw_masks,
    in_arrays,
    initialize,
)

TOLERANCE = 1e-6
FLOOR = 1e-3  # coordinates below this share of the parameter's largest are measured against that share
COORDINATE_STEP = 1e-3  # one number moves: the formula errs by 1e-13 or so, and rounding by as much
DIRECTION_STEP = 2e-5  # root mean square over the numbers, all of which move at once: chaotic states want it small

SMALL_WORDS = 9
SMALL_HIDDEN = 3
SMALL_EMBEDDING = 2
SMALL_STEPS = 6
SMALL_TRUNCATION = 2  # one of 3 must differ
SMALL_STREAMS = 3
KINK = 0.02  # no sum that enters a relu of a small model is nearer to zero: steps move it by a tenth of that or so
LARGE_STEPS = 12
LARGEST_STEPS = 64
LARGE_STREAMS = 4
SMALLEST_STEP = 1e-7  # below it differences are all rounding

NO_DROPOUT = Dropout()


class Kind(NamedTuple):
    """One kind of model, as trained."""

    settings: ModelSettings
    dropout: Dropout = NO_DROPOUT


class Window(NamedTuple):
    """What a loss is computed on. Streams are the second axis of all arrays: windows can be set side by side."""

    inputs: Array  # (T, B)
    targets: Array  # (T, B), some perhaps IGNORED
    weights: Array  # (T, B), of the losses in L
    states: Array  # (L, M, B, H), before the window
    masks: Mapping[str, Array] = NO_MASKS  # of dropout

    def losses(self, model: LanguageModel, work: Workspace) -> tuple[tuple[Array, Array], Callable[[Array], Gradients]]:
        """Return `model.losses` of this window, always with the same zeros."""
        return model.losses(self.inputs, self.targets, self.states, work, self.masks)

    def part(self, span: slice, states: Array, outputs: slice = slice(None)) -> Window:
        """Return some steps of this window, from given states, in which only the targets of some outputs count."""
        targets = np.full_like(self.targets[span], IGNORED)
        targets[outputs] = self.targets[span][outputs]
        return Window(self.inputs[span], targets, self.weights[span], states, self.masks)


@dataclass(frozen=True)
class Row:
    """What was found about one parameter of one kind of model."""

    kind: str
    parameter: str  # "all" for directions in which all parameters move together
    shape: tuple[int, ...]
    coordinates: int  # how many derivatives were compared
    worst_error: float  # infinite where there is nothing to compare
    where: tuple[int, ...] | str  # index of the worst coordinate, or "direction 3", or what is wrong with the gradient
    analytic: float  # the worst coordinate's two values
    numeric: float
    passed: bool


GradientFunction = Callable[[LanguageModel, Window], Gradients]


def model_gradients(model: LanguageModel, window: Window) -> Gradients:
    """Ask the model for its gradients: what is checked unless another function is given."""
    _, backward = window.losses(model, Workspace())
    return backward(window.weights)


# ---------------------------------------------------------------------------------------------------------------------
# What is checked


def small_kinds() -> list[Kind]:
    """List small models of every kind that can be trained; a new kind of model is a row here.

    Windows of sentences have a stream that is carried all through, so it takes few kinds to check carried states.
    """
    K, tails = SMALL_TRUNCATION, {None: (4,), SMALL_TRUNCATION: (2, 5, 6)}
    kinds: list[Kind] = []

    def add(truncate: int | None, dropout: Dropout = NO_DROPOUT, **settings: Any) -> None:
        kinds.append(Kind(ModelSettings(SMALL_WORDS, SMALL_HIDDEN, cell, truncate, **settings), dropout))

    for cell in CELLS:
        for steps in (0, 1, SMALL_STEPS + 3):
            add(steps)
        for truncate in (None, K):
            for layers in (1, 2):
                add(truncate, layers=layers)
                add(truncate, layers=layers, carry_state=True)
                add(truncate, layers=layers, embedding=SMALL_EMBEDDING)
                add(truncate, layers=layers, tied=True)
            add(truncate, layers=2, tied=True, embedding=SMALL_EMBEDDING)  # a last layer of another size
            if len(CELLS[cell].gates) > 1:  # without X1: a word's row is as wide as what it is added to
                add(truncate, embedding=len(CELLS[cell].reads or CELLS[cell].gates) * SMALL_HIDDEN)
            add(truncate, cutoffs=tails[truncate])
            add(truncate, cutoffs=(0, *tails[truncate]))  # all words are in tails
            for place in vars(NO_DROPOUT):
                layers = 1 + (place in ("hidden", "weights"))
                add(truncate, layers=layers, dropout=Dropout(**{place: 0.3}))
            add(truncate, cutoffs=tails[truncate], layers=2, tied=True, dropout=Dropout(0.3, 0.3, 0.3, 0.3))
    return kinds


def describe(kind: Kind) -> str:
    """Name a kind of model in a few words, such as "elman, truncate 4, carried state"."""
    settings = kind.settings
    reach = "window" if settings.truncate is None else f"truncate {settings.truncate}"
    words = [settings.cell, reach, "carried state" if settings.carry_state else "sentences"]
    rates = {place: rate for place, rate in asdict(kind.dropout).items() if rate}
    if rates:
        words.append(f"dropout of {', '.join(rates)}")
    if settings.layers > 1:
        words.append(f"{settings.layers} layers")
    if settings.embedding:
        words.append(f"embedding {settings.embedding}")
    if settings.tied:
        words.append("tied")
    if settings.cutoffs:
        words.append(f"{len(settings.cutoffs)} tail{'s' if len(settings.cutoffs) > 1 else ''}")
    return ", ".join(words)


def _describe_case(model: LanguageModel, window: Window) -> str:
    places = {"rows": "inputs", f"s{model.settings.layers}": "outputs"}
    places |= {name: "weights" if name[0] == "W" else "hidden" for name in window.masks if name not in places}
    return describe(Kind(model.settings, Dropout(**{places[name]: 1.0 for name in window.masks})))


def small_case(kind: Kind, seed: int = 0) -> tuple[LanguageModel, Window]:
    """Make a small model of a kind, with a window in which everything happens that can happen in training.

    No parameter is zero, as biases are at first, and none is so large that gates or tanh are flat. Relus are drawn
    again until each is open at times and closed at times, and none near its kink, where there is no derivative. See
    random_window.
    """
    generator = np.random.default_rng(seed)
    scale = 0.5 if len(CELLS[kind.settings.cell].gates) == 1 else 0.8  # each gate takes some of what passes it
    while True:
        model = initialize(kind.settings, np.ones(kind.settings.words), generator, np.float64)
        parameters = {name: generator.normal(0, scale, value.shape) for name, value in model.parameters.items()}
        model = LanguageModel(kind.settings, parameters)
        window = random_window(model, SMALL_STEPS, SMALL_STREAMS, generator, kind.dropout)
        if kind.settings.cell != "relu" or _relus_are_fit(model, window):
            return model, window


def _relus_are_fit(model: LanguageModel, window: Window) -> bool:
    share = _open_units(model, window).mean(axis=(0, 3))[:, 0]  # (L, H), of steps and streams
    units = np.arange(share.shape[1]) < np.array(model.settings.units)[:, None]
    return bool(np.all((share > 0) & (share < 1) | ~units)) and _off_the_kink(model, window)


def _off_the_kink(model: LanguageModel, window: Window) -> bool:
    """Say whether no relu would open or close if its z alone, by way of its bias, were moved by up to KINK."""
    states, work = window.states, Workspace()
    for t in range(len(window.inputs)):
        step = window.part(slice(t, t + 1), states, slice(0))
        (_, after), _ = step.losses(model, work)
        for layer, distance in itertools.product(range(model.settings.layers), (KINK, -KINK)):
            bias = f"b{layer + 1}"
            moved = _moved(model, {bias: np.ones_like(model.parameters[bias])}, distance)
            (_, there), _ = step.losses(moved, work)
            if np.any((there[layer] > 0) != (after[layer] > 0)):
                return False
        states = after
    return True


def random_window(
    model: LanguageModel,
    steps: int,
    streams: int,
    generator: np.random.Generator,
    dropout: Dropout = NO_DROPOUT,
) -> Window:
    """Draw a window of random words for a model.

    The first stream lies within one sentence. In the second a sentence begins halfway, in the third one at the first
    step too, and in later ones at some more steps. An eighth of the targets are IGNORED, but have weights; weights
    differ; the state before is not zero. The last word is never read.
    """
    words = model.settings.words
    inputs = generator.integers(1, max(2, words - 1), (steps, streams))
    for stream in range(1, streams):
        begins = [steps // 2, 0, *generator.integers(0, steps, streams)][:stream]
        inputs[begins, stream] = SENTENCE_END
    targets = generator.integers(0, words, (steps, streams))
    targets.reshape(-1)[generator.choice(targets.size, targets.size // 8, replace=False)] = IGNORED
    weights = generator.uniform(0.5, 1.5, targets.shape) / targets.size
    states = generator.uniform(-0.5, 0.5, model.start(streams).shape)
    masks = draw_masks(model.settings, streams, dropout, generator, np.float64)
    return Window(inputs, targets, weights, states, masks)


def check_small_models(
    seed: int = 0,
    tolerance: float = TOLERANCE,
    progress: Callable[[str], object] | None = None,
    gradients: GradientFunction = model_gradients,
) -> list[Row]:
    """Check every coordinate of every parameter of a small model of every kind.

    `progress` is called with a kind's description once it is done; `gradients` is the function under test. Returns a
    row for each parameter of each kind.
    """
    rows = []
    for kind in small_kinds():
        model, window = small_case(kind, seed)
        rows += check_coordinates(model, window, tolerance, gradients)
        if progress is not None:
            progress(describe(kind))
    return rows


@np.errstate(all="ignore")  # numbers that are not finite are findings here, and each fails its row
def check_coordinates(
    model: LanguageModel, window: Window, tolerance: float = TOLERANCE, gradients: GradientFunction = model_gradients
) -> list[Row]:
    """Check each coordinate of each parameter, on one window. Returns a row for each parameter."""
    model = _in_float64(model)
    loss, kind = loss_function(model, window), _describe_case(model, window)

    def compare(name: str, gradient: Array) -> Row:
        value = model.parameters[name]
        numeric = np.empty(value.size)
        for index in range(value.size):
            direction = np.zeros(value.size)
            direction[index] = 1
            numeric[index] = _derivative(loss, {name: direction.reshape(value.shape)}, COORDINATE_STEP)
        places = list(np.ndindex(value.shape))
        return _row(kind, name, value.shape, places, gradient.reshape(-1), numeric, tolerance)

    return _each_parameter(kind, model, gradients(model, window), compare)


@np.errstate(all="ignore")
def check_model(
    model: LanguageModel,
    generator: np.random.Generator,
    window: Window | None = None,
    directions: int = 4,
    tolerance: float = TOLERANCE,
    progress: Callable[[str], object] | None = None,
    gradients: GradientFunction = model_gradients,
) -> list[Row]:
    """Check a model of any size, in float64, along random unit directions; the window is of random words if not given.

    Returns a row for each parameter, and one named "all" for directions in which all parameters move together;
    `progress` is called with each name once it is done.
    """
    model = _in_float64(model)
    if window is None:  # longer than a truncation reaches, unless that is very far
        steps = LARGE_STEPS if model.settings.truncate is None else min(model.settings.truncate + 4, LARGEST_STEPS)
        window = random_window(model, steps, LARGE_STREAMS, generator)
    loss, kind = loss_function(model, window), _describe_case(model, window)
    claimed, parts = gradients(model, window), constant_state_window(model, window)
    places = [f"direction {index}" for index in range(directions)]

    def compare(name: str, dense: Parameters, shape: tuple[int, ...]) -> Row:
        analytic, numeric = np.empty(directions), np.empty(directions)
        size = sum(gradient.size for gradient in dense.values())
        for index in range(directions):
            direction = _unit_direction(dense, generator)
            analytic[index] = sum(np.vdot(gradient, direction[key]) for key, gradient in dense.items())
            step = _smooth_step(model, parts, direction, DIRECTION_STEP * np.sqrt(size))
            numeric[index] = _derivative(loss, direction, step)
        if progress is not None:
            progress(name)
        return _row(kind, name, shape, places, analytic, numeric, tolerance)

    rows = _each_parameter(kind, model, claimed, lambda name, dense: compare(name, {name: dense}, dense.shape))
    if all(row.coordinates for row in rows):  # else one is not even a gradient, and its row says so
        everything = {name: _dense(claimed[name], value.shape) for name, value in model.parameters.items()}
        rows.append(compare("all", everything, ()))
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# The numeric side


LossFunction = Callable[[Parameters, float], Array]


def loss_function(model: LanguageModel, window: Window) -> LossFunction:
    """Return the terms of L as a function of (direction, distance): how far, and in what direction, parameters move.

    A direction names the parameters that move. Terms, and not their sum, because differences of small numbers are
    rounded less. If the model truncates, states are held constant as described above.
    """
    work = Workspace()
    part = constant_state_window(model, window)

    def loss(direction: Parameters, distance: float) -> Array:
        (losses, _), _ = part.losses(_moved(model, direction, distance), work)
        return part.weights * losses

    return loss


def _moved(model: LanguageModel, direction: Parameters, distance: float) -> LanguageModel:
    moved = {name: model.parameters[name] + distance * part for name, part in direction.items()}
    return LanguageModel(model.settings, {**model.parameters, **moved})


def constant_state_window(model: LanguageModel, window: Window) -> Window:
    """Cut a window into windows whose losses, states before them held constant, have the truncated gradient.

    The first holds the outputs whose errors reach the window's first step: all of them without truncation. The others
    hold one output each: short windows in which only the last target counts. They come side by side as streams.
    """
    steps = len(window.inputs)
    reach = steps if model.settings.truncate is None else min(steps, model.settings.truncate + 1)
    parts, states, work = [window.part(slice(0, reach), window.states)], window.states, Workspace()
    for start in range(1, steps - reach + 1):
        (_, states), _ = window.part(slice(start - 1, start), states).losses(model, work)
        parts.append(window.part(slice(start, start + reach), states, slice(reach - 1, reach)))
    return _side_by_side(parts)


def _side_by_side(windows: list[Window]) -> Window:
    inputs, targets, weights, states, masks = zip(*windows, strict=True)
    by_stream = {  # (B, n) each; a mask of W is that of all streams
        name: mask if name[0] == "W" else np.concatenate([one[name] for one in masks])
        for name, mask in masks[0].items()
    }
    x, y, own_weights = (np.concatenate(arrays, axis=1) for arrays in (inputs, targets, weights))
    return Window(x, y, own_weights, np.concatenate(states, axis=2), by_stream)


def _unit_direction(parameters: Parameters, generator: np.random.Generator) -> Parameters:
    drawn = {name: generator.standard_normal(value.shape) for name, value in parameters.items()}
    length = np.sqrt(sum(np.vdot(part, part) for part in drawn.values()))
    return {name: part / length for name, part in drawn.items()}


def _smooth_step(model: LanguageModel, window: Window, direction: Parameters, step: float) -> float:
    """Divide a step by four until, at all places whose losses are subtracted, each relu stays open or closed.

    A relu has no derivative at its kink, and of the thousands in a large model a few are always so near to it that a
    step opens or closes them: the difference is then that of two pieces of the loss. So a step is divided until no
    relu changes sides at any of the four places; what it covers is one smooth piece, for which the formula holds.
    """
    if model.settings.cell != "relu":
        return step
    here = _open_units(model, window)

    def stay(distance: float) -> bool:
        return np.array_equal(_open_units(_moved(model, direction, distance), window), here)

    while step > SMALLEST_STEP and not all(stay(times * step) for times in (2, -2, 1, -1)):
        step /= 4
    return step


def _open_units(model: LanguageModel, window: Window) -> Array:
    """Say which relus are open at each step (T, L, M, B, H): those whose output is above zero."""
    states, work, found = window.states, Workspace(), []
    for t in range(len(window.inputs)):
        (_, states), _ = window.part(slice(t, t + 1), states, slice(0)).losses(model, work)
        found.append(states > 0)
    return np.array(found)


def _derivative(loss: LossFunction, direction: Parameters, step: float) -> float:
    near = loss(direction, step) - loss(direction, -step)
    far = loss(direction, 2 * step) - loss(direction, -2 * step)
    return float((8 * near - far).sum()) / (12 * step)


# ---------------------------------------------------------------------------------------------------------------------
# The verdict


class _NotAGradientError(Exception):
    """What was returned for a parameter cannot be compared at all."""


def _in_float64(model: LanguageModel) -> LanguageModel:
    return LanguageModel(model.settings, {name: value.astype(np.float64) for name, value in model.parameters.items()})


def _each_parameter(
    kind: str, model: LanguageModel, claimed: Gradients, compare: Callable[[str, Array], Row]
) -> list[Row]:
    """Compare each parameter's gradient; a row that fails without comparison where there is none, or one too many."""
    rows = []
    for name in dict.fromkeys((*model.parameters, *claimed)):
        shape: tuple[int, ...] = ()
        try:
            if name not in model.parameters:
                raise _NotAGradientError("no such parameter")
            shape = model.parameters[name].shape
            if name not in claimed:
                raise _NotAGradientError("no gradient")
            rows.append(compare(name, _dense(claimed[name], shape)))
        except _NotAGradientError as reason:
            nothing = (float("inf"), str(reason), float("nan"), float("nan"), False)
            rows.append(Row(kind, name, shape, 0, *nothing))
    return rows


def _dense(gradient: Gradient, shape: tuple[int, ...]) -> Array:
    """Write a gradient out in full, if it is one for a parameter of that shape."""
    dense, times = np.zeros(shape), np.zeros(shape[0], int)
    for rows, values in in_arrays(gradient):
        ids = np.arange(shape[0])[rows] if isinstance(rows, slice) else rows
        if values.dtype != np.float64:
            raise _NotAGradientError(f"{values.dtype} from float64")
        if values.shape != (len(ids), *shape[1:]):
            raise _NotAGradientError(f"shape {values.shape} for {(len(ids), *shape[1:])}")
        if np.any((ids < 0) | (ids >= shape[0])):
            raise _NotAGradientError(f"rows outside of 0 to {shape[0] - 1}")
        np.add.at(times, ids, 1)
        dense[ids] = values
    if np.any(times > 1):
        raise _NotAGradientError("rows not disjoint")
    return dense


def _row(
    kind: str,
    name: str,
    shape: tuple[int, ...],
    places: Sequence[Any],
    analytic: Array,
    numeric: Array,
    tolerance: float,
) -> Row:
    """Judge one parameter by its worst coordinate: analytic and numeric (n,), and n names of places."""
    scale = np.max(np.abs(numeric))
    size = np.maximum(np.maximum(np.abs(analytic), np.abs(numeric)), FLOOR * scale)
    error = np.abs(analytic - numeric) / size
    error[~np.isfinite(error)] = np.inf  # a number that is not finite, or 0/0: everything is zero
    worst = int(np.argmax(error))
    values, passed = (float(analytic[worst]), float(numeric[worst])), bool(error[worst] <= tolerance)
    return Row(kind, name, shape, len(places), float(error[worst]), places[worst], *values, passed)
