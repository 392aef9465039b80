"""model.py against its equations: a second implementation, worked numbers, and what must not change anything."""

import itertools
import math
import threading
import time
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from conftest import all_in_full, in_full
from rnnlm import model as mathematics
from rnnlm.model import (
    BLOCK,
    CELLS,
    FEW,
    IGNORED,
    INPUT_RATE,
    NO_MASKS,
    OUTPUT_RATE,
    RATED_STATES,
    RULES,
    SENTENCE_END,
    TIED_RATE,
    Array,
    Dropout,
    Gradients,
    LanguageModel,
    Masks,
    ModelSettings,
    Optimizer,
    Parameters,
    Product,
    Workspace,
    add_rows,
    draw_masks,
    initialize,
    joint_norm,
    mean_weights,
    parameter_table,
    softmax_loss,
    sum_rows,
    word_rates,
)

NAMES = ("U", "W1", "b1", "V", "c")
WORDS, HIDDEN = 11, 5


def parameters(words: int = WORDS, hidden: int = HIDDEN, scale: float = 0.6, **settings: Any) -> Parameters:
    """Make parameters without a random generator, whose streams numpy may change some day; by default Elman's."""
    table = parameter_table(ModelSettings(words, hidden, **settings))
    return {
        name: scale * np.sin(np.arange(1.0, 1 + math.prod(shape)) ** 1.5 + offset).reshape(shape)
        for offset, (name, (shape, *_)) in enumerate(table.items())
    }


def small_model(cell: str = "elman", **settings: Any) -> LanguageModel:
    """Make a small float64 model of any kind."""
    return LanguageModel(ModelSettings(WORDS, HIDDEN, cell, **settings), parameters(cell=cell, **settings))


def elman(truncate: int | None = None, carry_state: bool = False) -> LanguageModel:
    """Make a small float64 model."""
    return small_model(truncate=truncate, carry_state=carry_state)


def sentences(steps: int, streams: int) -> tuple[Array, Array]:
    """Make inputs and targets (T, B): each target is the next input; sentences begin at different steps."""
    powers = [[pow(7, step + 17 * stream, 101) for stream in range(streams)] for step in range(steps + 1)]
    text = np.array(powers) % (WORDS - 1) + 1  # powers of 7 modulo 101 go through all of 1 .. 100 in disorder
    for stream in range(streams):
        text[4 * stream + 2 :: 5 + stream, stream] = SENTENCE_END
    return text[:-1], text[1:]


def some_state(streams: int, model: LanguageModel | None = None) -> Array:
    """Make states that are not zero; of one layer of one state, unless a model is given."""
    shape = (1, 1, streams, HIDDEN) if model is None else model.start(streams).shape
    return np.cos(np.arange(math.prod(shape)) ** 2.0).reshape(shape) * 0.7


EVERY_CELL = pytest.mark.parametrize("cell", CELLS)


def run(
    model: LanguageModel,
    inputs: Array,
    targets: Array,
    state: Array,
    weights: Array,
    work: Workspace | None = None,
    masks: Masks = NO_MASKS,
) -> tuple[Array, Array, Parameters]:
    """Return losses, the state after, and gradients in full."""
    (losses, after), backward = model.losses(inputs, targets, state, work or Workspace(), masks)
    return losses, after, all_in_full(backward(weights), model)


def assert_close(found: Parameters, expected: Parameters, tolerance: float = 1e-12) -> None:
    """Compare gradients by name."""
    assert set(found) == set(expected)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=tolerance, atol=tolerance, err_msg=name)


# ---------------------------------------------------------------------------------------------------------------------
# A second implementation: one sequence, one number at a time, the error of each output carried back on its own.

Vector = list[float]


def plain_softmax(logits: Vector) -> Vector:
    """Exponentials over their sum."""
    exponentials = [math.exp(logit) for logit in logits]
    total = math.fsum(exponentials)
    return [value / total for value in exponentials]


def plain_forward(
    theta: Parameters, words: list[int], start: Vector, forget: bool
) -> tuple[list[Vector], list[Vector], list[Vector]]:
    """Return, for each step, the state that it starts from, its own state, and its distribution."""
    U, W, b, V, c = (theta[name] for name in NAMES)
    H, before, states, distributions = len(b), [], [], []
    state = start
    for word in words:
        previous = [0.0] * H if forget and word == 0 else state
        state = [math.tanh(U[word][i] + sum(W[i][j] * previous[j] for j in range(H)) + b[i]) for i in range(H)]
        before.append(previous)
        states.append(state)
        distributions.append(plain_softmax([sum(V[w][i] * state[i] for i in range(H)) + c[w] for w in range(len(c))]))
    return before, states, distributions


def plain_bptt(
    theta: Parameters, words: list[int], targets: list[int], start: Vector, truncate: int, forget: bool
) -> tuple[Vector, Parameters]:
    """Return the losses and the gradients of their sum; each output's error visits `truncate` + 1 steps at most."""
    W, V = theta["W1"], theta["V"]
    H, words_known = len(theta["b1"]), len(theta["c"])
    before, states, distributions = plain_forward(theta, words, start, forget)
    g = {name: np.zeros_like(value) for name, value in theta.items()}
    losses = []
    for t, target in enumerate(targets):
        losses.append(-math.log(distributions[t][target]))
        error = [distributions[t][w] - (w == target) for w in range(words_known)]
        for w in range(words_known):
            g["c"][w] += error[w]
            for i in range(H):
                g["V"][w, i] += error[w] * states[t][i]
        delta = [sum(V[w][i] * error[w] for w in range(words_known)) * (1 - states[t][i] ** 2) for i in range(H)]
        for k in range(t, max(t - truncate, 0) - 1, -1):
            for i in range(H):
                g["b1"][i] += delta[i]
                g["U"][words[k], i] += delta[i]
                for j in range(H):
                    g["W1"][i, j] += delta[i] * before[k][j]
            if k == 0 or (forget and words[k] == 0):
                break
            delta = [sum(W[i][j] * delta[i] for i in range(H)) * (1 - states[k - 1][j] ** 2) for j in range(H)]
    return losses, g


@pytest.mark.parametrize("truncate", [0, 1, 4, 30, None])
def test_one_sentence_equals_the_original_bptt(truncate: int | None) -> None:
    """All five gradients of a sentence's summed loss are those of the double loop, to 1e-12, at each truncation."""
    model = elman(truncate)
    words = [SENTENCE_END, 3, 7, 1, 3, 9, 10, 2, 7]
    targets = [3, 7, 1, 3, 9, 10, 2, 7, SENTENCE_END]
    losses, _, gradients = run(
        model, np.array(words)[:, None], np.array(targets)[:, None], model.start(1), np.ones((9, 1))
    )
    reach = len(words) if truncate is None else truncate
    expected_losses, expected = plain_bptt(model.parameters, words, targets, [0.0] * HIDDEN, reach, forget=True)
    np.testing.assert_allclose(losses[:, 0], expected_losses, rtol=1e-12)
    assert_close(gradients, expected)


@pytest.mark.parametrize("carry_state", [False, True])
@pytest.mark.parametrize("truncate", [0, 1, 4, 30, None])
def test_streams_of_sentences_equal_the_double_loop(truncate: int | None, carry_state: bool) -> None:
    """So are those of a batch in the middle of a text, with sentences that begin inside, and a state from before."""
    model = elman(truncate, carry_state)
    inputs, targets = sentences(13, 3)
    start = some_state(3)
    losses, _, gradients = run(model, inputs, targets, start, np.ones(inputs.shape))
    expected = {name: np.zeros_like(value) for name, value in model.parameters.items()}
    for stream in range(3):
        stream_losses, part = plain_bptt(
            model.parameters,
            inputs[:, stream].tolist(),
            targets[:, stream].tolist(),
            start[0, 0, stream].tolist(),
            13 if truncate is None else truncate,
            forget=not carry_state,
        )
        np.testing.assert_allclose(losses[:, stream], stream_losses, rtol=1e-12)
        expected = {name: expected[name] + part[name] for name in NAMES}
    assert_close(gradients, expected)


def test_truncations_differ() -> None:
    """The cases above are different cases: five terms at truncation 4, lags 0 to 4, are neither four nor six."""
    model = elman()
    inputs, targets = sentences(13, 3)
    found = []
    for truncate in (0, 1, 3, 4, 5, None):
        other = LanguageModel(replace(model.settings, truncate=truncate, carry_state=True), model.parameters)
        found.append(run(other, inputs, targets, some_state(3), np.ones(inputs.shape))[2]["W1"])
    assert all(np.abs(one - other).max() > 1e-6 for i, one in enumerate(found) for other in found[:i])


# ---------------------------------------------------------------------------------------------------------------------
# Numbers worked by hand, and numbers pinned


def hand_model(truncate: int | None) -> LanguageModel:
    """Make a model of two words and one hidden unit whose states are 1/2 and 3/5."""
    v = 10 * math.log(4 / 3)
    theta = {
        "U": np.array([[math.log(3) / 2], [0.0]]),  # tanh(ln(3)/2) = (3 - 1) / (3 + 1) = 1/2
        "W1": np.array([[math.log(4)]]),  # z = ln(4)/2 = ln(2), and tanh(ln 2) = (4 - 1) / (4 + 1) = 3/5
        "b1": np.array([0.0]),
        "V": np.array([[0.0], [v]]),
        "c": np.array([0.0, math.log(3) - v / 2]),  # logits differ by ln 3, then by ln 3 + v/10 = ln 4
    }
    return LanguageModel(ModelSettings(words=2, hidden=1, truncate=truncate), theta)


@pytest.mark.parametrize("truncate", [None, 0, 1])
def test_two_steps_worked_by_hand(truncate: int | None) -> None:
    """Two words in, two words out, every number worked on paper.

    s_1 = 1/2, p_1 = (1/4, 3/4), the word is 1;  s_2 = 3/5, p_2 = (1/5, 4/5), the word is 0.  v = V[1] = 10 ln(4/3).
    p_1 - 1_y = (1/4, -1/4), p_2 - 1_y = (-4/5, 4/5).
    dV[1] = -1/4 * 1/2 + 4/5 * 3/5 = 0.355 and dV[0] is its opposite; dc = (-0.55, 0.55).
    delta_1(1) = -v/4 * (1 - 1/4) = -0.1875 v;  delta_2(2) = 4v/5 * (1 - 9/25) = 0.512 v.
    delta_2(1) = ln(4) * 0.512 v * (1 - 1/4) = 0.384 ln(4) v, which truncation 0 leaves out.
    dW = delta_2(2) * 1/2 = 0.256 v, for s_0 = 0;  dU[0] = delta_1(1) + delta_2(1), dU[1] = delta_2(2), db their sum.
    """
    model = hand_model(truncate)
    inputs, targets = np.array([[0], [1]]), np.array([[1], [0]])
    losses, state, gradients = run(model, inputs, targets, model.start(1), np.ones((2, 1)))
    np.testing.assert_allclose(losses[:, 0], [0.28768207245178085, 1.6094379124341003], rtol=1e-14)  # ln(4/3), ln(5)
    np.testing.assert_allclose(state, [[[[0.6]]]], rtol=1e-14)
    back = 0.0 if truncate == 0 else 1.5314382137671209  # delta_2(1); v = 2.8768207245178093
    expected = {
        "U": np.array([[-0.5394038858470892 + back], [1.4729322109531183]]),
        "W1": np.array([[0.7364661054765592]]),
        "b1": np.array([0.9335283251060291 + back]),
        "V": np.array([[-0.355], [0.355]]),
        "c": np.array([-0.55, 0.55]),
    }
    assert_close(gradients, expected, 1e-13)


def test_uniform_model_loses_log_of_vocabulary() -> None:
    """With all parameters zero every word has probability 1/V, and the mean loss is ln V."""
    for words in (2, 11, 1000, 2500):
        theta = {name: np.zeros_like(value) for name, value in parameters(words, 3).items()}
        model = LanguageModel(ModelSettings(words, 3), theta)
        targets = np.array([[0, 1], [words - 1, words // 2]])
        (losses, _), _ = model.losses(np.zeros((2, 2), int), targets, model.start(2), Workspace())
        assert float((losses * mean_weights(targets)).sum()) == pytest.approx(math.log(words), abs=1e-12)


PINNED = (
    2.429860742805,
    2.354079901202,
    2.278556493131,
    2.212078996041,
    2.146930865694,
    2.085618351257,
    2.032069678842,
    1.983013808115,
    1.937030748169,
    1.894098463053,
)


def test_pinned_curve_of_ten_steps() -> None:
    """Ten steps of Optimizer, rate 0.5, momentum 0.5, on one window: the loss falls, along ten known numbers.

    They were computed by `plain_bptt` above, truncation 4, and velocity = 0.5 * velocity + 0.5 * gradient of the mean,
    and do not come from model.py.
    """
    model = elman(truncate=4)
    inputs, targets = sentences(13, 3)
    work = Workspace()
    optimizer = Optimizer("momentum", model.parameters, model.settings, np.ones(WORDS), momentum=0.5, power=0)
    weights = mean_weights(targets)
    curve = []
    for _ in PINNED:
        (losses, _), backward = model.losses(inputs, targets, model.start(3), work)
        curve.append(float((losses * weights).sum()))
        optimizer.step(model.parameters, backward(weights), 0.5, work)
    np.testing.assert_allclose(curve, PINNED, rtol=0, atol=1e-9)
    assert len(curve) == 10
    assert all(later < earlier for earlier, later in itertools.pairwise(curve))


def logistic(value: float) -> float:
    """Compute the sigmoid as it is usually written."""
    return 1 / (1 + math.exp(-value))


def plain_cell(cell: str, theta: Parameters, row: Vector, states: list[Vector]) -> list[Vector]:
    """Read a word's row in the states before, one unit after another, by the formulas as they were published."""
    H, before = len(states[0]), states[0]
    X, W, b = (theta.get(name) for name in ("X1", "W1", "b1"))

    def read(part: int, unit: int) -> float:
        return row[unit] if X is None else sum(x * number for x, number in zip(X[part * H + unit], row, strict=True))

    def recall(part: int, unit: int) -> float:
        return sum(w * number for w, number in zip(W[part * H + unit], before, strict=True))

    after: list[Vector] = []
    for unit in range(H):
        b_1, b_2, b_3, b_4 = (b[part * H + unit] if part * H < len(b) else 0.0 for part in range(4))
        if cell == "elman":
            after.append([math.tanh(read(0, unit) + recall(0, unit) + b_1)])
        elif cell == "relu":
            after.append([max(0.0, read(0, unit) + recall(0, unit) + b_1)])
        elif cell == "sigmoid":
            after.append([logistic(read(0, unit) + recall(0, unit) + b_1)])
        elif cell == "gru":  # X in the order n, r, u; W in the order r, u, q; b in the order n, r, u, q
            r = logistic(read(1, unit) + recall(0, unit) + b_2)
            u = logistic(read(2, unit) + recall(1, unit) + b_3)
            n = math.tanh(read(0, unit) + b_1 + r * (recall(2, unit) + b_4))
            after.append([(1 - u) * n + u * before[unit]])
        else:
            o, i, f = (logistic(read(k, unit) + recall(k, unit) + b_k) for k, b_k in enumerate((b_1, b_2, b_3)))
            c = f * states[1][unit] + i * math.tanh(read(3, unit) + recall(3, unit) + b_4)
            after.append([o * math.tanh(c), c])
    return [list(state) for state in zip(*after, strict=True)]


@EVERY_CELL
def test_cells_equal_their_formulas(cell: str) -> None:
    """Six words through each cell, with states from before, are what the published formulas say, unit by unit."""
    model = small_model(cell, carry_state=True)
    words, start = [3, 7, 1, 3, 9, 10], some_state(1, model)
    states, found = [state[0].tolist() for state in start[0]], start
    for word in words:
        states = plain_cell(cell, model.parameters, model.parameters["U"][word].tolist(), states)
        _, found = model.step(np.array([word]), found, Workspace())
        np.testing.assert_allclose(found[0, :, 0], states, rtol=1e-12, atol=1e-15)


# ---------------------------------------------------------------------------------------------------------------------
# What must not make a difference


@EVERY_CELL
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("carry_state", [False, True])
@pytest.mark.parametrize("cuts", [(6,), (3, 4, 9), tuple(range(1, 13))])
def test_window_in_pieces_equals_one_long_window(
    cuts: tuple[int, ...], carry_state: bool, layers: int, cell: str
) -> None:
    """Losses and states are the same however a text is cut, when all states and masks are carried over the cuts."""
    model = small_model(cell, carry_state=carry_state, layers=layers)
    inputs, targets = sentences(13, 3)
    masks = draw_masks(model.settings, 3, Dropout(0.3, 0.3, 0.3, 0.3), np.random.default_rng(0), np.float64)
    (whole, after), _ = model.losses(inputs, targets, some_state(3, model), Workspace(), masks)
    state, work, pieces = some_state(3, model), Workspace(), []
    for start, stop in zip((0, *cuts), (*cuts, 13), strict=True):
        (losses, state), _ = model.losses(inputs[start:stop], targets[start:stop], state, work, masks)
        pieces.append(losses)
    np.testing.assert_allclose(np.concatenate(pieces), whole, rtol=1e-13)
    np.testing.assert_allclose(state, after, rtol=1e-13)


@EVERY_CELL
@pytest.mark.parametrize("truncate", [None, 2])
def test_a_mask_says_where_the_carried_state_is_kept(truncate: int | None, cell: str) -> None:
    """Where all is kept it changes nothing; where nothing is, losses and gradients are those of a reset state."""
    carried, reset = (small_model(cell, truncate=truncate, carry_state=carry) for carry in (True, False))
    inputs, targets = sentences(13, 3)
    start, weights = some_state(3, carried), np.linspace(0.1, 1, inputs.size).reshape(inputs.shape)
    for keep, same in ((np.ones(inputs.shape, bool), carried), (np.zeros(inputs.shape, bool), reset)):
        masked = run(carried, inputs, targets, start, weights, masks={"keep": keep})
        plain = run(same, inputs, targets, start, weights)
        np.testing.assert_array_equal(masked[0], plain[0])
        assert_close(masked[2], plain[2])


@EVERY_CELL
@pytest.mark.parametrize("carry_state", [False, True])
@pytest.mark.parametrize("truncate", [None, 0, 2])
def test_batch_equals_runs_of_one(truncate: int | None, carry_state: bool, cell: str) -> None:
    """Streams do not meet: each loss is that of the stream alone, and gradients are the sums of each one's.

    Dropout's masks are its own too, but for those of W.
    """
    model = small_model(cell, truncate=truncate, carry_state=carry_state, layers=2)
    inputs, targets = sentences(13, 4)
    start = some_state(4, model)
    masks = draw_masks(model.settings, 4, Dropout(0.3, 0.3, 0.3, 0.3), np.random.default_rng(0), np.float64)
    weights = np.linspace(0.1, 1, inputs.size).reshape(inputs.shape)
    losses, after, gradients = run(model, inputs, targets, start, weights, masks=masks)
    total = {name: np.zeros_like(value) for name, value in model.parameters.items()}
    for stream in range(4):
        one = slice(stream, stream + 1)
        own_masks = {name: mask if name[0] == "W" else mask[one] for name, mask in masks.items()}
        alone = run(model, inputs[:, one], targets[:, one], start[:, :, one], weights[:, one], Workspace(), own_masks)
        np.testing.assert_allclose(losses[:, one], alone[0], rtol=1e-13)
        np.testing.assert_allclose(after[:, :, one], alone[1], rtol=1e-13)
        total = {name: total[name] + alone[2][name] for name in total}
    assert_close(gradients, total, 1e-12)


@EVERY_CELL
@pytest.mark.parametrize("settings", [{}, {"layers": 2, "tied": True, "cutoffs": (3, 6)}], ids=["plain", "tied"])
def test_a_used_workspace_changes_nothing(settings: dict[str, Any], cell: str) -> None:
    """What other windows, larger, smaller and of another precision, left in the buffers is never read."""
    model, work = small_model(cell, truncate=2, **settings), Workspace()
    inputs, targets = sentences(13, 3)
    fresh = run(model, inputs, targets, some_state(3, model), mean_weights(targets))
    half = LanguageModel(model.settings, {name: value.astype(np.float32) for name, value in model.parameters.items()})
    whole = small_model(cell, **settings)
    for other, steps, streams in ((model, 20, 5), (half, 13, 3), (whole, 13, 3), (model, 4, 1)):
        more, after = sentences(steps, streams)
        states = some_state(streams, other).astype(other.parameters["W1"].dtype)
        run(other, more, after, states, mean_weights(after), work)
    again = run(model, inputs, targets, some_state(3, model), mean_weights(targets), work)
    assert np.array_equal(fresh[0], again[0])
    assert np.array_equal(fresh[1], again[1])
    assert all(np.array_equal(fresh[2][name], again[2][name]) for name in fresh[2])


@EVERY_CELL
@pytest.mark.parametrize("truncate", [None, 2])
@pytest.mark.parametrize("settings", [{}, {"layers": 2, "tied": True}], ids=["plain", "tied"])
def test_inputs_are_left_as_they_are(settings: dict[str, Any], truncate: int | None, cell: str) -> None:
    """Neither the state before the window nor parameters, masks, words or weights change; results outlive a call."""
    model, work = small_model(cell, truncate=truncate, **settings), Workspace()
    inputs, targets = sentences(13, 3)
    start, weights = some_state(3, model), mean_weights(targets)
    masks = draw_masks(model.settings, 3, Dropout(0.3, 0.3, 0.3, 0.3), np.random.default_rng(0), np.float64)
    given = (inputs, targets, start, weights, *model.parameters.values(), *masks.values())
    copies = [array.copy() for array in given]
    losses, after, _ = run(model, inputs, targets, start, weights, work, masks)
    kept = losses.copy(), after.copy()
    run(model, inputs[::-1], targets, after, weights, work)
    assert all(np.array_equal(array, copy) for array, copy in zip(given, copies, strict=True))
    assert np.array_equal(losses, kept[0])
    assert np.array_equal(after, kept[1])


@pytest.mark.parametrize("slice_words", [1, 4, 10, 11])
def test_slices_of_the_vocabulary_change_nothing(slice_words: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses, gradients and steps are those of one slice, whether or not slices divide the vocabulary evenly."""
    model = elman(truncate=2)
    inputs, targets = sentences(13, 3)
    weights = np.linspace(0.1, 1, inputs.size).reshape(inputs.shape)
    whole = run(model, inputs, targets, some_state(3), weights)
    whole_step = model.step(inputs[0], some_state(3), Workspace())
    monkeypatch.setattr(mathematics, "SLICE_WORDS", slice_words)
    cut = run(model, inputs, targets, some_state(3), weights)
    cut_step = model.step(inputs[0], some_state(3), Workspace())
    np.testing.assert_allclose(cut[0], whole[0], rtol=1e-13)
    assert_close(cut[2], whole[2], 1e-13)
    np.testing.assert_allclose(cut_step[0], whole_step[0], rtol=1e-13)


@EVERY_CELL
@pytest.mark.parametrize("truncate", [None, 2])
@pytest.mark.parametrize("layers", [1, 2])
def test_groups_of_streams_change_nothing(
    truncate: int | None, layers: int, cell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses, states and gradients are those of all streams together, however few walk through a window at a time."""
    model = small_model(cell, truncate=truncate, layers=layers)
    inputs, targets = sentences(13, 7)
    states, weights = some_state(7, model), mean_weights(targets)
    masks = draw_masks(model.settings, 7, Dropout(0.3, 0.3, 0.3, 0.3), np.random.default_rng(0), np.float64)
    together = run(model, inputs, targets, states, weights, masks=masks)
    monkeypatch.setattr(mathematics, "GROUP_NUMBERS", 1)
    for group in (1, 2, 3):
        monkeypatch.setattr(mathematics, "GROUP", group)
        assert len(mathematics.stream_groups(7, HIDDEN)) == 7 // group
        apart = run(model, inputs, targets, states, weights, masks=masks)
        np.testing.assert_allclose(apart[0], together[0], rtol=1e-13)
        np.testing.assert_allclose(apart[1], together[1], rtol=1e-13)
        for name, expected in together[2].items():
            np.testing.assert_allclose(apart[2][name], expected, rtol=1e-11, atol=1e-13, err_msg=name)


@EVERY_CELL
@pytest.mark.parametrize("truncate", [None, 2])
@pytest.mark.parametrize("layers", [1, 3])
def test_spans_of_steps_change_nothing(
    truncate: int | None, layers: int, cell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses, states and gradients are those of a window taken whole, however few steps make a span of it."""
    model = small_model(cell, truncate=truncate, layers=layers, embedding=3)
    inputs, targets = sentences(13, 4)
    arguments = inputs, targets, some_state(4, model), mean_weights(targets)
    masks = draw_masks(model.settings, 4, Dropout(0.3, 0.3, 0.3, 0.3), np.random.default_rng(0), np.float64)
    whole = run(model, *arguments, masks=masks)
    monkeypatch.setattr(mathematics, "SPAN_PRODUCTS", 1)
    monkeypatch.setattr(mathematics, "READ_ROWS", 5)
    for span in (1, 2, 5):
        monkeypatch.setattr(mathematics, "SPAN_STEPS", span)
        cut = run(model, *arguments, masks=masks)
        np.testing.assert_allclose(cut[0], whole[0], rtol=1e-13)
        np.testing.assert_allclose(cut[1], whole[1], rtol=1e-13, atol=1e-15)
        assert_close(cut[2], whole[2])


def test_groups_are_large_enough_to_pay() -> None:
    """Few streams, or small ones, walk together; the cut depends on both numbers and covers each stream once."""
    assert [len(mathematics.stream_groups(*shape)) for shape in ((20, 200), (64, 100), (64, 200), (64, 512))] == [
        1,
        1,
        2,
        2,
    ]
    assert mathematics.stream_groups(100, 200) == [slice(0, 33), slice(33, 66), slice(66, 100)]


def three_steps_of_training(kind: ModelSettings, steps: int, streams: int, threads: int) -> list[Array]:
    """Return all that three steps of training compute, and what a step of reading does after them."""
    work = Workspace(threads)
    theta = {name: value.astype(np.float32) for name, value in parameters(scale=0.1, **vars(kind)).items()}
    model = LanguageModel(kind, theta)
    text = (np.arange(steps * streams + 1) ** 2 * 7) % kind.words
    inputs, targets = text[:-1].reshape(steps, streams), text[1:].reshape(steps, streams)
    masks = draw_masks(kind, streams, Dropout(0.1, 0.1, 0.1, 0.1), np.random.default_rng(0), np.float32)
    optimizer = Optimizer("momentum", theta, model.settings, np.arange(kind.words), momentum=0.9)
    results = []
    for _ in range(3):
        (losses, state), backward = model.losses(inputs, targets, model.start(streams), work, masks)
        gradients = backward(mean_weights(targets))
        results += [losses, state, *all_in_full(gradients, model).values(), np.array(joint_norm(gradients, work))]
        optimizer.step(theta, gradients, 0.001, work)
    results += [model.step(inputs[0], model.start(streams), work)[0], *theta.values()]
    work.close()
    return results


def assert_threads_change_nothing(kind: ModelSettings, steps: int, streams: int, threads: int) -> None:
    """Compare several threads with one, bit by bit."""
    with threadpool_limits(1, user_api="blas"):
        one, several = (three_steps_of_training(kind, steps, streams, count) for count in (1, threads))
    assert len(one) == len(several)
    assert all(np.array_equal(a, b) for a, b in zip(one, several, strict=True))


@EVERY_CELL
@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {"truncate": 3},
        {"hidden": 100, "layers": 2, "embedding": 30},
        {"layers": 2, "tied": True, "cutoffs": (100, 400)},
        {"hidden": 100, "truncate": 2, "layers": 2, "tied": True},
    ],
    ids=["one layer", "two layers", "tied", "tied and truncated"],
)
def test_threads_do_not_change_a_bit(
    threads: int, settings: dict[str, Any], cell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses, gradients, step and training are bitwise those of one thread where streams walk in groups."""
    monkeypatch.setattr(mathematics, "SLICE_WORDS", 64)
    monkeypatch.setattr(mathematics, "GROUP_NUMBERS", 3200)
    kind = ModelSettings(700, **{"hidden": 200, **settings}, cell=cell)
    assert len(mathematics.stream_groups(64, kind.hidden)) == 2
    assert_threads_change_nothing(kind, 6, 64, threads)


@EVERY_CELL
@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize(
    "settings", [{"truncate": 3}, {"layers": 3, "tied": True}, {"layers": 2, "embedding": 30}], ids=str
)
def test_threads_do_not_change_a_bit_of_spans(
    threads: int, settings: dict[str, Any], cell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So they are where few streams walk through spans of steps, with one layer beside another."""
    monkeypatch.setattr(mathematics, "SPAN_PRODUCTS", 1)
    monkeypatch.setattr(mathematics, "SPAN_STEPS", 3)
    monkeypatch.setattr(mathematics, "READ_ROWS", 20)
    kind = ModelSettings(300, 60, cell=cell, **settings)
    assert len(mathematics.stream_groups(10, kind.hidden)) == 1
    assert_threads_change_nothing(kind, 16, 10, threads)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_tasks_wait_for_those_that_they_name(threads: int) -> None:
    """Each of many tasks begins when all that it names have ended; one that is nowhere is not waited for."""
    work, ended, early = Workspace(threads), set[int](), list[int]()

    def task(number: int, before: list[int]) -> None:
        early.extend(other for other in before if other not in ended)
        ended.add(number)

    named = {number: [number - 1, number // 2, number - 7] for number in range(200)}  # some below zero: nowhere
    before = {number: [other for other in others if 0 <= other < number] for number, others in named.items()}
    work.run({number: (partial(task, number, before[number]), named[number] if number else []) for number in named})
    work.close()
    assert ended == set(range(200))
    assert not early


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_an_error_in_a_task_is_not_lost(threads: int) -> None:
    """What fails in a task fails for the caller, those that wait for it are not called, and nobody waits forever."""
    work, called = Workspace(threads), list[int]()

    def task(number: int) -> None:
        called.append(number)
        if number == 3:
            raise ArithmeticError("three")

    with pytest.raises(ArithmeticError, match="three"):
        work.run({number: (partial(task, number), [number - 1]) for number in range(9)})
    work.close()
    assert called == [0, 1, 2, 3]


def test_nothing_goes_on_after_an_error() -> None:
    """Who catches what failed finds every thread at rest, those that were in the midst of a task included."""
    work, slow, done = Workspace(3), threading.Event(), list[int]()

    def task(number: int) -> None:
        if number == 0:
            slow.wait(5)  # until another one is in a task
            raise ArithmeticError("first")
        slow.set()
        time.sleep(0.05)
        done.append(number)

    with pytest.raises(ArithmeticError, match="first"):
        work.run({number: (partial(task, number), ()) for number in range(3)})
    before = list(done)
    time.sleep(0.2)
    assert done == before
    work.close()


def test_an_error_in_a_thread_is_not_lost() -> None:
    """What fails on a thread fails for the caller."""

    def work_on(index: int) -> None:
        if index == 2:
            raise ArithmeticError("two")

    work = Workspace(2)
    with pytest.raises(ArithmeticError, match="two"):
        work.each(work_on, range(4))
    work.close()


# ---------------------------------------------------------------------------------------------------------------------
# Sentences, ignored targets, precision, extremes


@EVERY_CELL
def test_sentence_start_cuts_the_state(cell: str) -> None:
    """What was read before a sentence, and the state before the window, change its losses only where it is carried."""
    inputs, targets = sentences(13, 1)
    begin = int(np.flatnonzero(inputs[:, 0] == SENTENCE_END)[0])
    assert begin > 0
    changed = inputs.copy()
    changed[:begin] = (changed[:begin] + 1) % WORDS
    for carry_state in (False, True):
        model = small_model(cell, carry_state=carry_state, layers=2)
        (first, _), _ = model.losses(inputs, targets, some_state(1, model), Workspace())
        (second, _), _ = model.losses(changed, targets, model.start(1), Workspace())
        assert np.array_equal(first[begin:], second[begin:]) != carry_state
        assert not np.array_equal(first[:begin], second[:begin])


@pytest.mark.parametrize("cell", [name for name in CELLS if name != "relu"])  # whose slope may be zero anyway
@pytest.mark.parametrize("truncate", [None, 12])
def test_sentence_start_cuts_the_gradient(truncate: int | None, cell: str) -> None:
    """The losses of a sentence owe nothing to words before it; carried, they do."""
    inputs = np.array([1, 2, 3, SENTENCE_END, 4, 5])[:, None]
    targets = np.array([2, 3, SENTENCE_END, 4, 5, 6])[:, None]
    weights = np.array([0, 0, 0, 1, 1, 1.0])[:, None]
    for carry_state in (False, True):
        model = small_model(cell, truncate=truncate, carry_state=carry_state)
        _, _, gradients = run(model, inputs, targets, some_state(1, model), weights)
        assert np.all(gradients["U"][[SENTENCE_END, 4, 5]] != 0)
        assert np.all(gradients["U"][[1, 2, 3]] != 0) == carry_state
        assert np.any(gradients["U"][[1, 2, 3]] != 0) == carry_state


def test_rows_name_the_words_read() -> None:
    """The gradient of U comes as the rows of the words that were read, each once, in ascending order."""
    model = elman()
    inputs, targets = sentences(6, 2)
    _, backward = model.losses(inputs, targets, model.start(2), Workspace())
    ((rows, _),) = backward(mean_weights(targets))["U"]
    assert rows.tolist() == sorted(set(inputs.ravel().tolist()))
    assert len(rows) < WORDS


def test_sum_rows_adds_repeated_ids() -> None:
    """Rows of equal ids add up; ids come out ascending, and those not named are absent."""
    ids = np.array([4, 1, 4, 0, 4])
    rows, sums = sum_rows(ids, np.array([[1.0, 2], [3, 4], [5, 6], [7, 8], [9, 10]]))
    assert rows.tolist() == [0, 1, 4]
    assert sums.tolist() == [[7, 8], [3, 4], [15, 18]]


@pytest.mark.parametrize("truncate", [None, 2])
def test_ignored_targets_contribute_nothing(truncate: int | None) -> None:
    """Where the target is ignored the loss is zero, and gradients are as if its weight were zero, whatever that is."""
    model = elman(truncate)
    inputs, targets = sentences(13, 3)
    ignored = np.zeros(targets.shape, bool)
    ignored.reshape(-1)[[0, 5, 6, 17, 38]] = True
    ignored[7:, 2] = True
    weights = np.linspace(0.1, 1, inputs.size).reshape(inputs.shape)
    full_losses, full_state, expected = run(model, inputs, targets, some_state(3), np.where(ignored, 0, weights))
    losses, state, found = run(model, inputs, np.where(ignored, IGNORED, targets), some_state(3), weights)
    assert np.all(losses[ignored] == 0)
    np.testing.assert_allclose(losses[~ignored], full_losses[~ignored], rtol=1e-13)
    assert np.array_equal(state, full_state)
    assert_close(found, expected, 1e-13)


@pytest.mark.parametrize("truncate", [None, 2])
def test_window_without_any_target(truncate: int | None) -> None:
    """A window in which every target is ignored has losses of zero, gradients of zero, and moves the state on."""
    model = elman(truncate)
    inputs, targets = sentences(6, 2)
    nothing = np.full_like(targets, IGNORED)
    losses, state, gradients = run(model, inputs, nothing, some_state(2), mean_weights(nothing))
    assert not losses.any()
    assert all(not gradient.any() for gradient in gradients.values())
    assert np.array_equal(state, model.losses(inputs, targets, some_state(2), Workspace())[0][1])


def test_mean_weights_make_a_mean() -> None:
    """Weights are 1/n at the n positions that count, 0 elsewhere, and 0 everywhere if none counts."""
    targets = np.array([[3, IGNORED], [0, 5]])
    assert mean_weights(targets).tolist() == [[1 / 3, 0], [1 / 3, 1 / 3]]
    assert mean_weights(np.full((2, 2), IGNORED)).tolist() == [[0, 0], [0, 0]]


@EVERY_CELL
@pytest.mark.parametrize("truncate", [None, 2])
@pytest.mark.parametrize("settings", [{}, {"layers": 2, "tied": True}], ids=["plain", "tied"])
def test_float32_stays_float32(settings: dict[str, Any], truncate: int | None, cell: str) -> None:
    """Parameters, states, masks, losses, gradients, velocity and log-probabilities are float32, before and after."""
    generator, work = np.random.default_rng(0), Workspace()
    kind = ModelSettings(WORDS, HIDDEN, cell, truncate, **settings)
    model = initialize(kind, np.arange(WORDS), generator)
    optimizer = Optimizer("momentum", model.parameters, kind, np.arange(WORDS), momentum=0.9)
    inputs, targets = sentences(6, 2)
    masks = draw_masks(kind, 2, Dropout(0.3, 0.3, 0.3, 0.3), generator, np.float32)
    for ignored in (False, True):
        targets = np.where((np.arange(12).reshape(6, 2) == 3) & ignored, IGNORED, targets)
        (losses, state), backward = model.losses(inputs, targets, model.start(2), work, masks)
        gradients = backward(mean_weights(targets))
        arrays = [losses, state, model.start(2), *model.step(inputs[0], state, work), *masks.values()]
        arrays += [np.asarray(values) for gradient in gradients.values() for _, values in gradient]
        optimizer.step(model.parameters, gradients, 0.1, work)
        arrays += [
            *model.parameters.values(),
            *(slot for memory in optimizer.memory.values() for slot in memory.values()),
            *optimizer.rates.values(),
        ]
        assert {array.dtype for array in arrays} == {np.dtype(np.float32)}


@EVERY_CELL
def test_float32_is_near_float64(cell: str) -> None:
    """Single precision loses no more than its own rounding: no sum in it is taken the wrong way."""
    model = small_model(cell, truncate=4)
    single = LanguageModel(model.settings, {name: value.astype(np.float32) for name, value in model.parameters.items()})
    inputs, targets = sentences(13, 3)
    losses, _, gradients = run(model, inputs, targets, some_state(3, model), mean_weights(targets))
    near = run(single, inputs, targets, some_state(3, model).astype(np.float32), mean_weights(targets))
    np.testing.assert_allclose(near[0], losses, rtol=1e-5)
    assert_close(near[2], gradients, 1e-5)


@pytest.mark.parametrize("cell", [name for name in CELLS if name != "relu"])  # whose states have no bound
@pytest.mark.parametrize("size", [1e3, 1e30])
def test_huge_gates_stay_finite(size: float, cell: str) -> None:
    """Gates that are wide open or shut overflow nowhere, forward or back."""
    model = small_model(cell)
    for name in ("U", "b1"):
        model.parameters[name] *= size
    inputs, targets = sentences(6, 2)
    losses, states, gradients = run(model, inputs, targets, some_state(2, model), mean_weights(targets))
    assert all(np.all(np.isfinite(array)) for array in (losses, states, *gradients.values()))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1e4, 1e18])
def test_huge_logits_stay_finite(size: float, dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits far beyond what exp can take give finite losses, probabilities and gradients, over slices too."""
    monkeypatch.setattr(mathematics, "SLICE_WORDS", 4)
    theta = {name: value.astype(dtype) for name, value in parameters().items()}
    theta["V"] *= dtype(size)
    model = LanguageModel(ModelSettings(WORDS, HIDDEN), theta)
    inputs, targets = sentences(6, 2)
    losses, state, gradients = run(model, inputs, targets, model.start(2), mean_weights(targets))
    assert np.all(np.isfinite(losses))
    assert losses.min() >= 0
    assert losses.max() > size / 100
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients.values())
    log_p, _ = model.step(inputs[0], state, Workspace())
    np.testing.assert_allclose(np.exp(log_p).sum(axis=1), 1, rtol=1e-5)


def test_tests_see_numbers_that_are_not_finite() -> None:
    """The tests of this project run with floating point errors raised, on threads as well."""
    with pytest.raises(FloatingPointError):
        np.log(np.zeros(1))

    def overflow(index: int) -> None:
        np.exp(np.array([1e3 * index]))

    work = Workspace(2)
    with pytest.raises(FloatingPointError):
        work.each(overflow, range(2))
    work.close()


@EVERY_CELL
@pytest.mark.parametrize("carry_state", [False, True])
@pytest.mark.parametrize("settings", [{}, {"layers": 2, "tied": True, "cutoffs": (3, 6)}], ids=["plain", "tied"])
def test_step_agrees_with_losses(settings: dict[str, Any], carry_state: bool, cell: str) -> None:
    """Word by word, -log p of each next word is the window's loss, each p is a distribution, and states agree."""
    model = small_model(cell, carry_state=carry_state, **settings)
    inputs, targets = sentences(13, 3)
    (losses, after), _ = model.losses(inputs, targets, some_state(3, model), Workspace())
    state, work = some_state(3, model), Workspace()
    for words, nexts, expected in zip(inputs, targets, losses, strict=True):
        log_p, state = model.step(words, state, work)
        assert log_p.shape == (3, WORDS)
        np.testing.assert_allclose(np.exp(log_p).sum(axis=1), 1, rtol=1e-13)
        np.testing.assert_allclose(-log_p[np.arange(3), nexts], expected, rtol=1e-13)
    np.testing.assert_allclose(state, after, rtol=1e-13)


# ---------------------------------------------------------------------------------------------------------------------
# Dropout


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_masks_zero_a_share_and_keep_the_mean(dtype: type) -> None:
    """Numbers are zeroed independently at the rate asked for, others grow so that the expectation stays."""
    settings = ModelSettings(WORDS, 150)
    mask = draw_masks(settings, 140, Dropout(inputs=0.25), np.random.default_rng(0), dtype)["rows"]
    assert mask.shape == (140, 150)
    assert mask.dtype == dtype
    zero = mask == 0
    np.testing.assert_allclose(mask[~zero], 1 / 0.75, rtol=1e-6)
    assert 0.24 < zero.mean() < 0.26  # 21,000 draws: over three deviations of the binomial
    for axis in (0, 1):  # no stream or unit goes as a whole, and none is spared
        assert np.abs(zero.mean(axis=axis) - 0.25).max() < 0.16


@pytest.mark.parametrize(
    ("dropout", "expected"),
    [
        (Dropout(), {}),
        (Dropout(inputs=0.5), {"rows": (4, 3)}),
        (Dropout(hidden=0.5), {"s1": (4, HIDDEN), "s2": (4, HIDDEN)}),
        (Dropout(outputs=0.5), {"s3": (4, HIDDEN)}),
        (Dropout(weights=0.5), {f"W{number}": (3 * HIDDEN, HIDDEN) for number in (1, 2, 3)}),
    ],
)
def test_masks_are_drawn_where_there_is_a_rate(dropout: Dropout, expected: dict[str, tuple[int, ...]]) -> None:
    """Each kind of dropout has masks of its own, for each layer; a rate of zero draws nothing from the generator."""
    settings, generator = ModelSettings(WORDS, HIDDEN, "gru", layers=3, embedding=3), np.random.default_rng(0)
    masks = draw_masks(settings, 4, dropout, generator, np.float64)
    assert {name: mask.shape for name, mask in masks.items()} == expected
    untouched = generator.bit_generator.state == np.random.default_rng(0).bit_generator.state
    assert untouched == (not expected)


def test_one_layer_has_outputs_and_nothing_hidden() -> None:
    """What the only layer hands up goes to the softmax: the share for hidden states has no place."""
    settings = ModelSettings(WORDS, HIDDEN)
    assert not draw_masks(settings, 2, Dropout(hidden=0.5), np.random.default_rng(0), np.float64)
    assert list(draw_masks(settings, 2, Dropout(outputs=0.5), np.random.default_rng(0), np.float64)) == ["s1"]


def test_masks_are_decided_by_their_generator() -> None:
    """The same seed draws the same masks, and the next draw others."""
    settings, dropout = ModelSettings(WORDS, HIDDEN, layers=2), Dropout(0.5, 0.5, 0.5, 0.5)
    generator = np.random.default_rng(1)
    first, second = (draw_masks(settings, 3, dropout, generator, np.float32) for _ in range(2))
    again = draw_masks(settings, 3, dropout, np.random.default_rng(1), np.float32)
    assert list(first) == list(again)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not any(np.array_equal(first[name], second[name]) for name in first)


@EVERY_CELL
@pytest.mark.parametrize("truncate", [None, 2])
@pytest.mark.parametrize("embedding", [None, 3])
def test_a_mask_is_locked_over_the_window(embedding: int | None, truncate: int | None, cell: str) -> None:
    """A mask of a stream acts at all steps alike, as if it stood in the matrix that reads what is masked.

    So losses, states and gradients are those of a model with masked columns of U, X2 and V and with masked W; by the
    chain rule its gradients are to be masked once more.
    """
    model = small_model(cell, truncate=truncate, layers=2, embedding=embedding)
    inputs, targets = sentences(13, 1)
    arguments = inputs, targets, some_state(1, model), mean_weights(targets)
    masks = draw_masks(model.settings, 1, Dropout(0.4, 0.4, 0.4, 0.4), np.random.default_rng(3), np.float64)
    assert all(0 < (mask == 0).sum() < mask.size for mask in masks.values())
    found = run(model, *arguments, masks=masks)
    places = {"rows": "U", "s1": "X2", "s2": "V", "W1": "W1", "W2": "W2"}
    assert set(places) == set(masks)
    factors = {places[name]: mask for name, mask in masks.items()}
    masked = {name: value * factors.get(name, 1) for name, value in model.parameters.items()}
    losses, after, gradients = run(LanguageModel(model.settings, masked), *arguments)
    np.testing.assert_allclose(found[0], losses, rtol=1e-12)
    np.testing.assert_allclose(found[1], after, rtol=1e-12, atol=1e-14)
    assert_close(found[2], {name: value * factors.get(name, 1) for name, value in gradients.items()})


@EVERY_CELL
def test_dropout_of_rows_and_outputs_leaves_the_recurrence_alone(cell: str) -> None:
    """With masks of zero nothing comes in and nothing goes out: what is left of the model is W, b and c.

    The states after the window are those that W and b make from the states before it, with words that are zero.
    """
    model = small_model(cell, carry_state=True)
    inputs, targets = sentences(6, 2)
    masks = {name: np.zeros((2, HIDDEN)) for name in ("rows", "s1")}
    (losses, states), _ = model.losses(inputs, targets, some_state(2, model), Workspace(), masks)
    c = model.parameters["c"]
    np.testing.assert_allclose(losses, np.log(np.exp(c).sum()) - c[targets], rtol=1e-12)
    silent = LanguageModel(model.settings, {**model.parameters, "U": np.zeros_like(model.parameters["U"])})
    (_, expected), _ = silent.losses(inputs, targets, some_state(2, model), Workspace())
    assert np.array_equal(states, expected)
    assert np.abs(states).max() > 0.01


# ---------------------------------------------------------------------------------------------------------------------
# Tied tables

TIED = pytest.mark.parametrize(
    "settings",
    [{}, {"cutoffs": (3, 6)}, {"layers": 2, "truncate": 2}],
    ids=["one softmax", "tails", "two layers"],
)


def untied_twin(model: LanguageModel) -> LanguageModel:
    """Return the model with its words' rows of V as a table U of its own."""
    U = model.parameters["V"][len(model.settings.cutoffs) :].copy()
    return LanguageModel(replace(model.settings, tied=False), {**model.parameters, "U": U})


@EVERY_CELL
@TIED
def test_tied_gradient_is_the_sum_of_both(settings: dict[str, Any], cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses are those of two equal tables, and the gradient of the one is their sum, each row said once."""
    monkeypatch.setattr(mathematics, "SLICE_WORDS", 4)  # several slices of V
    model = small_model(cell, tied=True, **settings)
    assert "U" not in model.parameters
    inputs, targets = sentences(13, 3)
    targets = np.where((targets > 2) & (targets < 6), IGNORED, targets)  # with tails, nobody asks for the first one
    arguments = inputs, targets, some_state(3, model), mean_weights(targets)
    found, expected = run(model, *arguments), run(untied_twin(model), *arguments)
    assert np.array_equal(found[0], expected[0])
    assert np.array_equal(found[1], expected[1])
    dU = expected[2].pop("U")
    expected[2]["V"][len(model.settings.cutoffs) :] += dU
    assert_close(found[2], expected[2])

    (_, _), backward = model.losses(*arguments[:3], Workspace())
    gradients = backward(arguments[3])
    ids = np.concatenate([np.arange(len(model.parameters["V"]))[rows] for rows, _ in gradients["V"]])
    assert len(ids) == len(set(ids.tolist()))
    dense = math.sqrt(sum(float((value**2).sum()) for value in expected[2].values()))
    assert joint_norm(gradients, Workspace()) == pytest.approx(dense, rel=1e-12)


@EVERY_CELL
@TIED
@pytest.mark.parametrize("kind", RULES)
def test_tied_table_is_stepped_once(kind: str, settings: dict[str, Any], cell: str) -> None:
    """A step with the merged rows moves each row as one with the gradient written out in full; unread ones stay."""
    model = small_model(cell, tied=True, **settings)
    inputs, targets = sentences(13, 3)
    (_, _), backward = model.losses(inputs, targets, some_state(3, model), Workspace())
    gradients = backward(mean_weights(targets))
    ids = np.concatenate([np.arange(len(model.parameters["V"]))[rows] for rows, _ in gradients["V"]])
    dense = [(slice(0, len(value)), value) for value in [all_in_full(gradients, model)["V"]]]
    before = model.parameters["V"].copy()
    other = {name: value.copy() for name, value in model.parameters.items()}
    for theta, found in ((model.parameters, gradients), (other, {**gradients, "V": dense})):
        copies = {name: [(rows, values.copy()) for rows, values in gradient] for name, gradient in found.items()}
        Optimizer(kind, theta, model.settings, np.arange(WORDS)).step(theta, copies, 0.01, Workspace())
    np.testing.assert_allclose(model.parameters["V"], other["V"], rtol=1e-13)
    assert np.all((model.parameters["V"] != before).any(axis=1)[ids])


def test_add_rows_keeps_rows_disjoint() -> None:
    """Rows that slices hold are added there, those between and beyond them come as ids, and none is said twice."""
    gradient = [(slice(0, 2), np.ones((2, 2))), (slice(4, 7), np.full((3, 2), 10.0))]
    ids = np.array([1, 2, 4, 6, 7, 9])
    merged = add_rows(gradient, ids, np.arange(12.0).reshape(6, 2))
    assert [rows for rows, _ in merged[:2]] == [slice(0, 2), slice(4, 7)]
    assert merged[0][1].tolist() == [[1, 1], [1, 2]]
    assert merged[1][1].tolist() == [[14, 15], [10, 10], [16, 17]]
    assert merged[2][0].tolist() == [2, 7, 9]
    assert merged[2][1].tolist() == [[2, 3], [8, 9], [10, 11]]
    assert len(merged) == 3


def test_add_rows_without_any_left() -> None:
    """Where slices hold every row, as without tails, nothing stands apart, and nothing at all may be added."""
    for ids in (np.array([0, 3]), np.zeros(0, int)):
        (_, own), (rows, values) = add_rows([(slice(0, 4), np.zeros((4, 2)))], ids, np.ones((len(ids), 2)))
        assert own.sum() == 2 * len(ids)
        assert len(rows) == len(values) == 0


# ---------------------------------------------------------------------------------------------------------------------
# Beginnings


@pytest.mark.parametrize("positions", [1, 2, FEW, FEW + 1])
def test_few_positions_have_the_losses_and_gradients_of_many(positions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few positions ask for a table, their losses, gradients and steps are those of them among others."""
    monkeypatch.setattr(mathematics, "SMALL", 100)  # several products of a few rows each
    generator = np.random.default_rng(1)
    S, V, c = (generator.normal(size=shape) for shape in ((FEW + 20, 6), (90, 6), 90))
    y, weights = generator.integers(0, 90, len(S)), generator.random(len(S))
    weights[positions:] = 0
    losses, backward = softmax_loss(S, y, V, c, (), Workspace())
    own_losses, own_backward = softmax_loss(S[:positions], y[:positions], V, c, (), Workspace())
    np.testing.assert_allclose(own_losses, losses[:positions], rtol=1e-12)
    dS, dV, dc = backward(weights)
    own_dS, own_dV, own_dc = own_backward(weights[:positions])
    np.testing.assert_allclose(own_dS, dS[:positions], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(in_full(own_dV, V), in_full(dV, V), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(in_full(own_dc, c), in_full(dc, c), rtol=1e-10, atol=1e-12)
    norms = (joint_norm({"V": found}, Workspace()) for found in (own_dV, dV))
    assert next(norms) == pytest.approx(next(norms), rel=1e-12)
    assert isinstance(own_dV[0][1], Product) == (positions <= FEW)
    for kind in RULES:
        tables = [V.copy(), V.copy()]
        for table, found in zip(tables, (own_dV, dV), strict=True):
            theta = {"V": table, "U": V, "c": c}
            optimizer = Optimizer(kind, theta, ModelSettings(90), np.arange(90), momentum=0.5)
            for step in (1, 2):
                own: Gradients = {"V": [(rows, copy(values)) for rows, values in found]}
                optimizer.step(theta, own, 0.1, Workspace(), shrink=0.5, time=step)
        np.testing.assert_allclose(*tables, rtol=1e-10, atol=1e-12)
        assert np.abs(tables[0] - V).max() > 1e-3


def test_first_values_are_those_of_tables_drawn_whole() -> None:
    """Tables are drawn a block of rows at a time, which changes none of their numbers."""
    settings = ModelSettings(2 * BLOCK // 40, 40)
    drawn = initialize(settings, np.ones(settings.words), np.random.default_rng(1)).parameters
    generator = np.random.default_rng(1)
    for name, fan_in in (("U", settings.words), ("W1", 40), ("V", 40)):
        limit = 1 / np.sqrt(fan_in)
        assert np.array_equal(drawn[name], generator.uniform(-limit, limit, drawn[name].shape).astype(np.float32))


def test_initial_model_predicts_word_frequencies() -> None:
    """At a state of zero the output bias alone speaks: p(w) is w's share of the counts, half an occurrence at least."""
    counts = np.array([50, 30, 0, 19.5])
    model = initialize(ModelSettings(4, 3), counts, np.random.default_rng(0), np.float64)
    c = model.parameters["c"]
    np.testing.assert_allclose(np.exp(c), [0.5, 0.3, 0.005, 0.195], rtol=1e-14)
    assert not model.parameters["b1"].any()


def test_initial_weights_fill_one_over_root_fan_in() -> None:
    """U lies within 1/sqrt(V), W and V within 1/sqrt(H), both signs, right up to the limit, and the seed decides."""
    settings = ModelSettings(400, 25)
    model, same, other = (initialize(settings, np.ones(400), np.random.default_rng(seed)) for seed in (1, 1, 2))
    for name, limit in (("U", 0.05), ("W1", 0.2), ("V", 0.2)):
        value = model.parameters[name]
        assert limit * 0.98 < value.max() <= np.float32(limit)
        assert -limit * 0.98 > value.min() >= -np.float32(limit)
        assert abs(value.mean()) < limit / 10
        assert np.array_equal(value, same.parameters[name])
        assert not np.array_equal(value, other.parameters[name])


@pytest.mark.parametrize(
    ("settings", "limits"),
    [
        ({"embedding": 16}, {"U": 1 / 4, "X1": 1 / 4, "W1": 1 / 5, "V": 1 / 5}),  # a word's row goes through X1
        ({"cell": "lstm", "embedding": 100}, {"U": 1 / 20, "W1": 1 / 5, "V": 1 / 5}),  # or is added as it is
        ({"cell": "gru", "layers": 2}, {"U": 3**0.5 / 5, "X1": 1 / 5, "X2": 1 / 5, "W2": 1 / 5, "V": 3**0.5 / 5}),
        ({"tied": True, "layers": 2, "embedding": None}, {"X1": 1 / 5, "X2": 1 / 5, "V": 3**0.5 / 5}),
        ({"layers": 2}, {"U": 1 / 20, "X2": 1 / 5, "W2": 1 / 5, "V": 1 / 5}),
    ],
)
def test_fan_in_is_what_each_number_is_added_with(settings: dict[str, Any], limits: dict[str, float]) -> None:
    """Matrices fill the range of their fan-in: V for a table whose rows are added as they are, else its columns.

    Where words pass several layers, from X1 on, rows of both tables are sqrt(3) times as long.
    """
    model = initialize(ModelSettings(400, 25, **settings), np.ones(400), np.random.default_rng(1))
    for name, limit in limits.items():
        assert limit * 0.97 < np.abs(model.parameters[name]).max() <= np.float32(limit), name


READ_INTO = {
    "elman": 3,
    "relu": 3,
    "sigmoid": 3,
    "gru": 9,
    "lstm": 12,
}  # numbers of z that a word is added to, of 3 hidden units
GATES = {"elman": 3, "relu": 3, "sigmoid": 3, "gru": 12, "lstm": 12}


def shapes(cell: str, **settings: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a new model of 7 words and 3 hidden units."""
    model = initialize(ModelSettings(7, 3, cell, **settings), np.ones(7), np.random.default_rng(0))
    return {name: value.shape for name, value in model.parameters.items()}


@EVERY_CELL
def test_shapes_are_those_of_the_cell(cell: str) -> None:
    """Words' rows have H numbers unless it is said how many; where z has as many to read into there is no X1."""
    reads, whole = READ_INTO[cell], GATES[cell]
    rest = {"W1": (reads, 3), "b1": (whole,), "V": (7, 3), "c": (7,)}
    X1 = {} if reads == 3 else {"X1": (reads, 3)}
    assert shapes(cell) == shapes(cell, embedding=3) == {"U": (7, 3), **X1, **rest}
    assert shapes(cell, embedding=reads) == {"U": (7, reads), **rest}
    assert shapes(cell, embedding=2) == {"U": (7, 2), "X1": (reads, 2), **rest}
    assert shapes(cell, tied=True) == {"X1": (reads, 3), **rest}
    second = {"X2": (reads, 3), "W2": (reads, 3), "b2": (whole,)}
    assert shapes(cell, embedding=reads, layers=2) == {"U": (7, reads), **rest, **second}
    tails = {"V": (9, 3), "c": (9,)}
    assert shapes(cell, tied=True, cutoffs=(2, 4)) == {"X1": (reads, 3), **rest, **tails}


@EVERY_CELL
@pytest.mark.parametrize("layers", [1, 3])
def test_states_are_those_of_the_cell(layers: int, cell: str) -> None:
    """An LSTM has s and c, all others s alone, in each layer; they begin at zero."""
    model = initialize(ModelSettings(7, 3, cell, layers=layers), np.ones(7), np.random.default_rng(0))
    assert model.start(5).shape == (layers, 2 if cell == "lstm" else 1, 5, 3)
    assert not model.start(5).any()


@EVERY_CELL
def test_first_biases_are_zero_but_for_the_forget_gate(cell: str) -> None:
    """Of the LSTM's o, i, f and g the third begins at 1, in a network of one layer."""
    for layers in (1, 2):
        parameters = initialize(
            ModelSettings(7, 2, cell, layers=layers), np.ones(7), np.random.default_rng(0)
        ).parameters
        forget = [0, 0, 0, 0, 1, 1, 0, 0]
        for name in ("b1", "b2")[:layers]:
            expected = forget if cell == "lstm" and layers == 1 else [0] * len(parameters[name])
            assert parameters[name].tolist() == expected


# ---------------------------------------------------------------------------------------------------------------------
# Optimizer


def some_gradients(theta: Parameters, ids: list[int], step: int) -> Gradients:
    """Make gradients that differ from step to step; that of U has rows `ids` only."""
    full = {name: np.cos(np.arange(value.size) * (step + 1.0)).reshape(value.shape) for name, value in theta.items()}
    whole = {name: [(slice(0, len(value)), value)] for name, value in full.items()}
    return {**whole, "U": [(np.array(ids), full["U"][ids])]}


@pytest.mark.parametrize("power", [0, 0.5, 1])
@pytest.mark.parametrize("momentum", [0, 0.9])
def test_sgd_equals_its_formula(momentum: float, power: float) -> None:
    """Three steps equal velocity = momentum * velocity + dX, X -= rate * velocity, and leave unread rows alone."""
    theta = parameters()
    counts = np.arange(WORDS) * 3
    expected = {name: value.copy() for name, value in theta.items()}
    velocity = {name: np.zeros_like(value) for name, value in theta.items()}
    relative = [1 / (max(count, 0.5) / (counts.sum() + 0.5)) ** power for count in counts]
    scales = {"U": INPUT_RATE, "V": OUTPUT_RATE, "c": OUTPUT_RATE} if power else {"U": 1, "V": 1, "c": 1}
    kind = "momentum" if momentum else "sgd"
    optimizer, work = Optimizer(kind, theta, ModelSettings(WORDS, HIDDEN), counts, momentum, power), Workspace()
    for step, (ids, rate) in enumerate((([0, 3, 4], 0.1), ([3, 10], 0.2), ([0, 1, 10], 0.05))):
        gradients = some_gradients(theta, ids, step)
        full = all_in_full(gradients, LanguageModel(ModelSettings(WORDS), theta))
        for name in NAMES:
            for row in ids if name == "U" else range(len(theta[name])):
                own_rate = rate * relative[row] * scales[name] if name in scales else rate
                velocity[name][row] = momentum * velocity[name][row] + full[name][row]
                expected[name][row] -= own_rate * velocity[name][row]
        optimizer.step(theta, gradients, rate, work)
    assert_close(theta, expected, 1e-13)
    assert all(list(memory) == (["velocity"] if momentum else []) for memory in optimizer.memory.values())


@EVERY_CELL
@pytest.mark.parametrize("tied", [False, True])
def test_rates_are_those_of_the_cell_and_the_tables(tied: bool, cell: str) -> None:
    """Against a gradient of ones, X, W and b of every layer move by the cell's rate, a tied table by one of its own."""
    assert CELLS[cell].rate == {"gru": 10, "lstm": 20}.get(cell, 1)
    settings = ModelSettings(WORDS, HIDDEN, cell, layers=2, tied=tied, cutoffs=(3, 6))
    theta, counts = parameters(**vars(settings)), np.arange(WORDS) * 3
    before = {name: value.copy() for name, value in theta.items()}
    gradients: Gradients = {name: [(slice(0, len(value)), np.ones_like(value))] for name, value in theta.items()}
    Optimizer("sgd", theta, settings, counts).step(theta, gradients, 0.01, Workspace())
    output_rate = TIED_RATE if tied else OUTPUT_RATE
    for name, value in theta.items():
        moved = (before[name] - value).reshape(len(value), -1)
        rate = {"U": INPUT_RATE * word_rates(counts, 0.5)}.get(name, np.full(len(value), CELLS[cell].rate))
        rate = output_rate * word_rates(counts, 0.5, (3, 6)) if name in "Vc" else rate
        np.testing.assert_allclose(moved, np.broadcast_to(0.01 * rate[:, None], moved.shape), rtol=1e-9)


@pytest.mark.parametrize("tied", [False, True])
def test_what_reads_many_states_learns_more_slowly(tied: bool) -> None:
    """The rate of X, W and V falls with the number of states that they read; a tied table, U and biases keep theirs."""
    H, V = 3 * RATED_STATES, 2 * RATED_STATES
    settings = ModelSettings(V, H, layers=2, embedding=H, tied=tied)
    counts = np.ones(V)
    theta, words = initialize(settings, counts, np.random.default_rng(1)).parameters, word_rates(counts, 0.5)[:, None]
    rates = Optimizer("sgd", theta, settings, counts).rates
    assert [rates[name][0, 0] for name in ("X2", "W1", "W2")] == pytest.approx([1 / 3] * 3)
    assert rates["b1"][0] == 1
    np.testing.assert_allclose(rates["c"], (TIED_RATE if tied else OUTPUT_RATE) * words[:, 0], rtol=1e-6)
    np.testing.assert_allclose(rates["V"], (TIED_RATE if tied else OUTPUT_RATE / 3) * words, rtol=1e-6)
    if not tied:
        np.testing.assert_allclose(rates["U"], INPUT_RATE * words, rtol=1e-6)


@pytest.mark.parametrize("kind", ["adagrad", "adam"])
def test_adaptive_optimizers_equal_their_formulas(kind: str) -> None:
    """Three steps equal the published formulas, written as loops over rows; rows that are not touched keep still."""
    theta = parameters()
    expected = {name: value.copy() for name, value in theta.items()}
    first, second = ({name: np.zeros_like(value) for name, value in theta.items()} for _ in range(2))
    optimizer, work = Optimizer(kind, theta, ModelSettings(WORDS, HIDDEN), np.ones(WORDS)), Workspace()
    for step, ids in enumerate(([0, 3, 4], [3, 10], [0, 1, 10]), start=1):
        gradients = some_gradients(theta, ids, step)
        full = all_in_full(gradients, LanguageModel(ModelSettings(WORDS), theta))
        gradients["V"] = [(slice(start, stop), full["V"][start:stop]) for start, stop in ((0, 4), (6, 7))]
        touched = {"U": ids, "V": [0, 1, 2, 3, 6]}
        for name in NAMES:
            for row in touched.get(name, range(len(theta[name]))):
                g = 0.5 * full[name][row]
                if kind == "adagrad":
                    second[name][row] = second[name][row] + g**2
                    change = g / (np.sqrt(second[name][row]) + 1e-8)
                else:
                    first[name][row] = 0.9 * first[name][row] + 0.1 * g
                    second[name][row] = 0.999 * second[name][row] + 0.001 * g**2
                    mean, square = first[name][row] / (1 - 0.9**step), second[name][row] / (1 - 0.999**step)
                    change = mean / (np.sqrt(square) + 1e-8)
                expected[name][row] = expected[name][row] - 0.1 * change
        optimizer.step(theta, gradients, 0.1, work, shrink=0.5, time=step)
    assert_close(theta, expected, 1e-12)


def test_unread_rows_keep_their_velocity() -> None:
    """A row of U that is not read stays where it is, whatever its velocity; it moves on from that when read again."""
    theta = parameters()
    settings = ModelSettings(WORDS, HIDDEN)
    optimizer, work = Optimizer("momentum", theta, settings, np.ones(WORDS), momentum=0.5, power=0), Workspace()
    zero: Gradients = {name: [(slice(0, len(theta[name])), np.zeros_like(theta[name]))] for name in NAMES[1:]}
    before = theta["U"][2].copy()
    optimizer.step(theta, {**zero, "U": [(np.array([2]), np.ones((1, HIDDEN)))]}, 1.0, work)
    np.testing.assert_allclose(theta["U"][2], before - 1)
    optimizer.step(theta, {**zero, "U": [(np.array([3]), np.ones((1, HIDDEN)))]}, 1.0, work)
    np.testing.assert_allclose(theta["U"][2], before - 1)
    optimizer.step(theta, {**zero, "U": [(np.array([2]), np.zeros((1, HIDDEN)))]}, 1.0, work)
    np.testing.assert_allclose(theta["U"][2], before - 1.5)


def test_large_tables_are_stepped_whole() -> None:
    """A table of many blocks is changed in every row, once, on any number of threads."""
    for threads in (1, 3):
        theta = {"V": np.ones((5003, 67)), "U": np.zeros((5003, 67)), "c": np.zeros(5003)}
        counts = np.arange(5003) % 7
        settings = ModelSettings(5003, 67)
        optimizer, work = Optimizer("momentum", theta, settings, counts, momentum=0.5), Workspace(threads)
        gradient = np.sin(np.arange(5003 * 67.0)).reshape(5003, 67)
        optimizer.step(theta, {"V": [(slice(0, 5003), gradient.copy())]}, 0.1, work)
        work.close()
        rates = 0.1 * OUTPUT_RATE * word_rates(counts, 0.5)[:, None]
        np.testing.assert_allclose(theta["V"], 1 - rates * gradient, rtol=0, atol=1e-14)


def test_word_rates_are_powers_of_frequency() -> None:
    """p^-power, of counts of half an occurrence at least; a rarer word never learns at a lower rate."""
    counts = np.array([70, 29.5, 0])
    np.testing.assert_allclose(word_rates(counts, 1), [1 / 0.7, 1 / 0.295, 1 / 0.005])
    np.testing.assert_allclose(word_rates(counts, 0.5) ** 2, word_rates(counts, 1))
    assert word_rates(counts, 0).tolist() == [1, 1, 1]


@pytest.mark.parametrize("convert", [np.float32, np.float64])
def test_joint_norm_is_that_of_all_numbers_together(convert: Callable[[Array], Array]) -> None:
    """The norm of rows and tables laid end to end; a large table loses no more than rounding."""
    gradients: Gradients = {
        "U": [(np.array([1, 5]), convert(np.array([[3.0, 0], [0, 4]])))],
        "W1": [(slice(0, 1), convert(np.array([[12.0]])))],
    }
    assert joint_norm(gradients, Workspace()) == pytest.approx(13, rel=1e-7)
    assert joint_norm({"V": [(slice(0, 300_001), convert(np.full(300_001, 1e-3)))]}, Workspace(2)) == pytest.approx(
        1e-3 * math.sqrt(300_001), rel=1e-5
    )


def test_joint_norm_of_what_cancels_is_next_to_nothing() -> None:
    """Rounding makes the sum of squares of many such products a little less than zero, which has no root."""
    generator = np.random.default_rng(3)
    for _ in range(50):
        left, row = generator.normal(size=(1, 2)).astype(np.float32), generator.normal(size=(1, 3)).astype(np.float32)
        cancels = Product(left, np.concatenate([row * left[0, 1], -row * left[0, 0]]))
        assert joint_norm({"V": [(slice(0, 1), cancels)]}, Workspace()) < 0.01


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("make", [lambda values: values, lambda values: Product(values, np.ones((1, 2)))])
def test_joint_norm_of_what_is_no_number_is_none(make: Callable[[Array], Any], value: float) -> None:
    """A gradient that is infinite or not a number is never taken for a small one: training stops where it sees that."""
    gradients = {"V": [(slice(0, 2), make(np.array([[value], [1]])))]}
    assert not math.isfinite(joint_norm(gradients, Workspace()))


def test_words_may_all_be_in_tails() -> None:
    """With a first cutoff of 0 the head has slots alone: probabilities sum to one, and scoring agrees with them."""
    model = small_model(cutoffs=(0, 3, 6))
    log_p, _ = model.step(np.array([4]), model.start(1), Workspace())
    np.testing.assert_allclose(np.exp(log_p).sum(), 1, rtol=1e-12)
    y = np.arange(WORDS)[None]
    (losses, _), _ = model.losses(np.full_like(y, 4), y, model.start(WORDS), Workspace())
    np.testing.assert_allclose(-losses[0], log_p[0], rtol=1e-10)


@EVERY_CELL
def test_a_text_may_begin_in_a_state_of_its_own(cell: str) -> None:
    """`first` is the state before the first word of each stream, where states are carried; else sentences forget it."""
    for carried in (True, False):
        model = small_model(cell, carry_state=carried)
        start = model.start(2)
        own = replace(model, first=some_state(1, model)[:, :, 0])
        np.testing.assert_array_equal(own.start(2), np.repeat(some_state(1, model), 2, axis=2))
        same = np.array_equal(
            own.step(np.zeros(2, int), own.start(2), Workspace())[0],
            model.step(np.zeros(2, int), start, Workspace())[0],
        )
        assert same != carried
