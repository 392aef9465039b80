"""model.py against its equations: a second implementation, worked numbers, and what must not change anything."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from rnnlm import model as mathematics
from rnnlm.model import (
    CELLS,
    IGNORED,
    INPUT_RATE,
    OUTPUT_RATE,
    SENTENCE_END,
    Array,
    Dropout,
    Gradients,
    LanguageModel,
    ModelSettings,
    Optimizer,
    Parameters,
    Workspace,
    drop,
    initialize,
    joint_norm,
    mean_weights,
    sum_rows,
    word_rates,
)

NAMES = ("U", "W1", "b1", "V", "c")
WORDS, HIDDEN = 11, 5


def parameters(words: int = WORDS, hidden: int = HIDDEN, scale: float = 0.6) -> Parameters:
    """Make parameters of an Elman network without a random generator, whose streams numpy may change some day."""
    shapes = {"U": (words, hidden), "W1": (hidden, hidden), "b1": (hidden,), "V": (words, hidden), "c": (words,)}
    return {
        name: scale * np.sin(np.arange(1.0, 1 + math.prod(shape)) ** 1.5 + offset).reshape(shape)
        for offset, (name, shape) in enumerate(shapes.items())
    }


def elman(truncate: int | None = None, carry_state: bool = False) -> LanguageModel:
    """Make a small float64 model."""
    return LanguageModel(ModelSettings(WORDS, HIDDEN, "elman", truncate, carry_state), parameters())


def sentences(steps: int, streams: int) -> tuple[Array, Array]:
    """Make inputs and targets (T, B): each target is the next input; sentences begin at different steps."""
    powers = [[pow(7, step + 17 * stream, 101) for stream in range(streams)] for step in range(steps + 1)]
    text = np.array(powers) % (WORDS - 1) + 1  # powers of 7 modulo 101 go through all of 1 .. 100 in disorder
    for stream in range(streams):
        text[4 * stream + 2 :: 5 + stream, stream] = SENTENCE_END
    return text[:-1], text[1:]


def some_state(streams: int, hidden: int = HIDDEN) -> Array:
    """Make states that are not zero."""
    return np.cos(np.arange(streams * hidden) ** 2.0).reshape(1, 1, streams, hidden) * 0.7


def in_full(gradients: Gradients, model: LanguageModel) -> Parameters:
    """Write the rows out."""
    full = {name: np.zeros_like(model.parameters[name]) for name in gradients}
    for name, gradient in gradients.items():
        for rows, values in gradient:
            full[name][rows] = values
    return full


def run(
    model: LanguageModel, inputs: Array, targets: Array, state: Array, weights: Array, work: Workspace | None = None
) -> tuple[Array, Array, Parameters]:
    """Return losses, the state after, and gradients in full."""
    (losses, after), backward = model.losses(inputs, targets, state, work or Workspace())
    return losses, after, in_full(backward(weights), model)


def assert_close(found: Parameters, expected: Parameters, tolerance: float = 1e-12) -> None:
    """Compare gradients by name."""
    assert set(found) == set(expected) == set(NAMES)
    for name in NAMES:
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


# ---------------------------------------------------------------------------------------------------------------------
# What must not make a difference


@pytest.mark.parametrize("carry_state", [False, True])
@pytest.mark.parametrize("cuts", [(6,), (3, 4, 9), tuple(range(1, 13))])
def test_window_in_pieces_equals_one_long_window(cuts: tuple[int, ...], carry_state: bool) -> None:
    """Losses and states are the same however a text is cut, when the state is carried over the cuts."""
    model = elman(carry_state=carry_state)
    inputs, targets = sentences(13, 3)
    (whole, after), _ = model.losses(inputs, targets, some_state(3), Workspace())
    state, work, pieces = some_state(3), Workspace(), []
    for start, stop in zip((0, *cuts), (*cuts, 13), strict=True):
        (losses, state), _ = model.losses(inputs[start:stop], targets[start:stop], state, work)
        pieces.append(losses)
    np.testing.assert_allclose(np.concatenate(pieces), whole, rtol=1e-13)
    np.testing.assert_allclose(state, after, rtol=1e-13)


@pytest.mark.parametrize("carry_state", [False, True])
@pytest.mark.parametrize("truncate", [None, 0, 2])
def test_batch_equals_runs_of_one(truncate: int | None, carry_state: bool) -> None:
    """Streams do not meet: each loss is that of the stream alone, and gradients are the sums of each one's."""
    model = elman(truncate, carry_state)
    inputs, targets = sentences(13, 4)
    start = some_state(4)
    weights = np.linspace(0.1, 1, inputs.size).reshape(inputs.shape)
    losses, after, gradients = run(model, inputs, targets, start, weights)
    total = {name: np.zeros_like(value) for name, value in model.parameters.items()}
    for stream in range(4):
        one = slice(stream, stream + 1)
        alone = run(model, inputs[:, one], targets[:, one], start[:, :, one], weights[:, one])
        np.testing.assert_allclose(losses[:, one], alone[0], rtol=1e-13)
        np.testing.assert_allclose(after[:, :, one], alone[1], rtol=1e-13)
        total = {name: total[name] + alone[2][name] for name in NAMES}
    assert_close(gradients, total, 1e-13)


def test_a_used_workspace_changes_nothing() -> None:
    """What other windows, larger, smaller and of another precision, left in the buffers is never read."""
    model, work = elman(truncate=2), Workspace()
    inputs, targets = sentences(13, 3)
    fresh = run(model, inputs, targets, some_state(3), mean_weights(targets))
    half = LanguageModel(model.settings, {name: value.astype(np.float32) for name, value in model.parameters.items()})
    for other, steps, streams in ((model, 20, 5), (half, 13, 3), (model, 4, 1)):
        more, after = sentences(steps, streams)
        run(other, more, after, some_state(streams).astype(other.parameters["W1"].dtype), mean_weights(after), work)
    again = run(model, inputs, targets, some_state(3), mean_weights(targets), work)
    assert np.array_equal(fresh[0], again[0])
    assert np.array_equal(fresh[1], again[1])
    assert all(np.array_equal(fresh[2][name], again[2][name]) for name in NAMES)


def test_inputs_are_left_as_they_are() -> None:
    """Neither the state before the window nor parameters, words or weights change; results outlive the next call."""
    model, work = elman(truncate=2), Workspace()
    inputs, targets = sentences(13, 3)
    start, weights = some_state(3), mean_weights(targets)
    given = (inputs, targets, start, weights, *model.parameters.values())
    copies = [array.copy() for array in given]
    losses, after, _ = run(model, inputs, targets, start, weights, work)
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


@pytest.mark.parametrize("truncate", [None, 2])
@pytest.mark.parametrize("layers", [1, 2])
def test_groups_of_streams_change_nothing(truncate: int | None, layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses, states and gradients are those of all streams together, however few walk through a window at a time."""
    settings = ModelSettings(WORDS, HIDDEN, truncate=truncate, layers=layers)
    model = initialize(settings, np.ones(WORDS), np.random.default_rng(1), np.float64)
    inputs, targets = sentences(13, 7)
    states, weights = np.sin(np.arange(layers * 7.0 * HIDDEN)).reshape(layers, 1, 7, HIDDEN), mean_weights(targets)
    together = run(model, inputs, targets, states, weights)
    monkeypatch.setattr(mathematics, "GROUP_NUMBERS", 1)
    for group in (1, 2, 3):
        monkeypatch.setattr(mathematics, "GROUP", group)
        assert len(mathematics.stream_groups(7, HIDDEN)) == 7 // group
        apart = run(model, inputs, targets, states, weights)
        np.testing.assert_allclose(apart[0], together[0], rtol=1e-13)
        np.testing.assert_allclose(apart[1], together[1], rtol=1e-13)
        for name, expected in together[2].items():
            np.testing.assert_allclose(apart[2][name], expected, rtol=1e-12, atol=1e-14, err_msg=name)


def test_groups_are_large_enough_to_pay() -> None:
    """Few streams, or small ones, walk together; the cut depends on both numbers and covers each stream once."""
    assert [len(mathematics.stream_groups(*shape)) for shape in ((20, 200), (64, 100), (64, 200), (64, 512))] == [
        1,
        1,
        2,
        2,
    ]
    assert mathematics.stream_groups(100, 200) == [slice(0, 33), slice(33, 66), slice(66, 100)]


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_do_not_change_a_bit(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses, gradients, step and ten steps of training are bitwise those of one thread."""
    monkeypatch.setattr(mathematics, "SLICE_WORDS", 64)
    monkeypatch.setattr(mathematics, "GROUP", 2)
    monkeypatch.setattr(mathematics, "GROUP_NUMBERS", 1)

    def train(threads: int) -> list[Array]:
        work = Workspace(threads)
        theta = {name: value.astype(np.float32) for name, value in parameters(700, 100, 0.2).items()}
        model = LanguageModel(ModelSettings(700, 100), theta)
        text = (np.arange(8 * 6 + 1) ** 2 * 7) % 700
        inputs, targets = text[:-1].reshape(8, 6), text[1:].reshape(8, 6)
        optimizer = Optimizer("momentum", theta, model.settings, np.arange(700), momentum=0.9)
        results = []
        for _ in range(3):
            (losses, state), backward = model.losses(inputs, targets, model.start(6), work)
            gradients = backward(mean_weights(targets))
            results += [losses, state, *in_full(gradients, model).values()]
            optimizer.step(theta, gradients, 0.1, work)
        results += [model.step(inputs[0], model.start(6), work)[0], *theta.values()]
        work.close()
        return results

    with threadpool_limits(1, user_api="blas"):
        one, several = train(1), train(threads)
    assert len(one) == len(several)
    assert all(np.array_equal(a, b) for a, b in zip(one, several, strict=True))


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


def test_sentence_start_cuts_the_state() -> None:
    """What was read before a sentence, and the state before the window, change its losses only where it is carried."""
    inputs, targets = sentences(13, 1)
    begin = int(np.flatnonzero(inputs[:, 0] == SENTENCE_END)[0])
    assert begin > 0
    changed = inputs.copy()
    changed[:begin] = (changed[:begin] + 1) % WORDS
    for carry_state in (False, True):
        model = elman(carry_state=carry_state)
        (first, _), _ = model.losses(inputs, targets, some_state(1), Workspace())
        (second, _), _ = model.losses(changed, targets, model.start(1), Workspace())
        assert np.array_equal(first[begin:], second[begin:]) != carry_state
        assert not np.array_equal(first[:begin], second[:begin])


@pytest.mark.parametrize("truncate", [None, 12])
def test_sentence_start_cuts_the_gradient(truncate: int | None) -> None:
    """The losses of a sentence owe nothing to words before it; carried, they do."""
    inputs = np.array([1, 2, 3, SENTENCE_END, 4, 5])[:, None]
    targets = np.array([2, 3, SENTENCE_END, 4, 5, 6])[:, None]
    weights = np.array([0, 0, 0, 1, 1, 1.0])[:, None]
    for carry_state in (False, True):
        _, _, gradients = run(elman(truncate, carry_state), inputs, targets, some_state(1), weights)
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


@pytest.mark.parametrize("truncate", [None, 2])
def test_float32_stays_float32(truncate: int | None) -> None:
    """Parameters, states, losses, gradients, velocity and log-probabilities are float32 before and after a step."""
    generator, work = np.random.default_rng(0), Workspace()
    settings = ModelSettings(WORDS, HIDDEN, truncate=truncate)
    model = initialize(settings, np.arange(WORDS), generator)
    optimizer = Optimizer("momentum", model.parameters, settings, np.arange(WORDS), momentum=0.9)
    inputs, targets = sentences(6, 2)
    for ignored in (False, True):
        targets = np.where((np.arange(12).reshape(6, 2) == 3) & ignored, IGNORED, targets)
        (losses, state), backward = model.losses(inputs, targets, model.start(2), work)
        gradients = backward(mean_weights(targets))
        arrays = [losses, state, model.start(2), *model.step(inputs[0], state, work)]
        arrays += [values for gradient in gradients.values() for _, values in gradient]
        optimizer.step(model.parameters, gradients, 0.1, work)
        arrays += [
            *model.parameters.values(),
            *(slot for memory in optimizer.memory.values() for slot in memory.values()),
            *optimizer.rates.values(),
        ]
        assert {array.dtype for array in arrays} == {np.dtype(np.float32)}


def test_float32_is_near_float64() -> None:
    """Single precision loses no more than its own rounding: no sum in it is taken the wrong way."""
    model = elman(truncate=4)
    single = LanguageModel(model.settings, {name: value.astype(np.float32) for name, value in model.parameters.items()})
    inputs, targets = sentences(13, 3)
    losses, _, gradients = run(model, inputs, targets, some_state(3), mean_weights(targets))
    near = run(single, inputs, targets, some_state(3).astype(np.float32), mean_weights(targets))
    np.testing.assert_allclose(near[0], losses, rtol=1e-5)
    assert_close(near[2], gradients, 1e-5)


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


@pytest.mark.parametrize("carry_state", [False, True])
def test_step_agrees_with_losses(carry_state: bool) -> None:
    """Word by word, -log p of each next word is the window's loss, each p is a distribution, and states agree."""
    model = elman(carry_state=carry_state)
    inputs, targets = sentences(13, 3)
    (losses, after), _ = model.losses(inputs, targets, some_state(3), Workspace())
    state, work = some_state(3), Workspace()
    for words, nexts, expected in zip(inputs, targets, losses, strict=True):
        log_p, state = model.step(words, state, work)
        assert log_p.shape == (3, WORDS)
        np.testing.assert_allclose(np.exp(log_p).sum(axis=1), 1, rtol=1e-13)
        np.testing.assert_allclose(-log_p[np.arange(3), nexts], expected, rtol=1e-13)
    np.testing.assert_allclose(state, after, rtol=1e-13)


# ---------------------------------------------------------------------------------------------------------------------
# Dropout


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_drop_zeroes_a_share_and_keeps_the_mean(dtype: type) -> None:
    """Numbers are zeroed independently at the rate asked for, others grow so that the expectation stays."""
    values = np.full((50, 40, 10), 2, dtype)
    dropped, backward = drop(values, Dropout(0.25, np.random.default_rng(0)), Workspace())
    zero = dropped == 0
    assert 0.24 < zero.mean() < 0.26  # 20,000 draws: over three deviations of the binomial
    np.testing.assert_allclose(dropped[~zero], 2 / 0.75, rtol=1e-6)
    for axes in ((0, 1), (0, 2), (1, 2)):  # no step, stream or unit goes as a whole, and none is spared
        assert np.abs(zero.mean(axis=axes) - 0.25).max() < 0.1
    assert np.array_equal(backward(np.ones_like(values)), dropped / 2)
    assert dropped.dtype == dtype
    assert np.all(values == 2)


def test_dropout_reaches_inputs_and_outputs_only() -> None:
    """With a share near one every input and output is zero: what is left of the model is W, b and c.

    The recurrence itself loses nothing: the state after the window is that of the biases and the state before.
    """
    model = elman(carry_state=True)
    inputs, targets = sentences(6, 2)
    dropout = Dropout(1 - 1e-12, np.random.default_rng(0))
    (losses, state), _ = model.losses(inputs, targets, some_state(2), Workspace(), dropout)
    c, W, b = (model.parameters[name] for name in ("c", "W1", "b1"))
    np.testing.assert_allclose(losses, np.log(np.exp(c).sum()) - c[targets], rtol=1e-12)
    expected = some_state(2)
    for _ in range(6):
        expected = np.tanh(expected @ W.T + b)
    np.testing.assert_allclose(state, expected, rtol=1e-12)


def test_dropout_is_decided_by_its_generator() -> None:
    """The same seed gives the same losses and gradients, another seed others, and no dropout draws nothing."""
    model = elman(truncate=2)
    inputs, targets = sentences(13, 3)

    def run_with(seed: int) -> tuple[Array, Parameters]:
        dropout = Dropout(0.5, np.random.default_rng(seed))
        (losses, _), backward = model.losses(inputs, targets, some_state(3), Workspace(), dropout)
        return losses, in_full(backward(mean_weights(targets)), model)

    first, again, other = run_with(1), run_with(1), run_with(2)
    assert np.array_equal(first[0], again[0])
    assert all(np.array_equal(first[1][name], again[1][name]) for name in NAMES)
    assert not np.any(first[0] == other[0])
    assert not np.any(first[0] == model.losses(inputs, targets, some_state(3), Workspace())[0][0])


# ---------------------------------------------------------------------------------------------------------------------
# Beginnings


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


@pytest.mark.parametrize("cell", CELLS)
def test_shapes_are_those_of_the_cell(cell: str) -> None:
    """Gates widen U, W and b, states deepen the state, and nothing else changes."""
    gates, states = len(CELLS[cell].gates), len(CELLS[cell].states)
    settings = ModelSettings(7, 3, cell)
    model = initialize(settings, np.ones(7), np.random.default_rng(0))
    shapes = {name: value.shape for name, value in model.parameters.items()}
    assert shapes == {"U": (7, 3 * gates), "W1": (3 * gates, 3), "b1": (3 * gates,), "V": (7, 3), "c": (7,)}
    assert model.start(5).shape == (1, states, 5, 3)
    assert not model.start(5).any()


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
        full = in_full(gradients, LanguageModel(ModelSettings(WORDS), theta))
        for name in NAMES:
            for row in ids if name == "U" else range(len(theta[name])):
                own_rate = rate * relative[row] * scales[name] if name in scales else rate
                velocity[name][row] = momentum * velocity[name][row] + full[name][row]
                expected[name][row] -= own_rate * velocity[name][row]
        optimizer.step(theta, gradients, rate, work)
    assert_close(theta, expected, 1e-13)
    assert all(list(memory) == (["velocity"] if momentum else []) for memory in optimizer.memory.values())


@pytest.mark.parametrize("kind", ["adagrad", "adam"])
def test_adaptive_optimizers_equal_their_formulas(kind: str) -> None:
    """Three steps equal the published formulas, written as loops over rows; rows that are not touched keep still."""
    theta = parameters()
    expected = {name: value.copy() for name, value in theta.items()}
    first, second = ({name: np.zeros_like(value) for name, value in theta.items()} for _ in range(2))
    optimizer, work = Optimizer(kind, theta, ModelSettings(WORDS, HIDDEN), np.ones(WORDS)), Workspace()
    for time, ids in enumerate(([0, 3, 4], [3, 10], [0, 1, 10]), start=1):
        gradients = some_gradients(theta, ids, time)
        full = in_full(gradients, LanguageModel(ModelSettings(WORDS), theta))
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
                    mean, square = first[name][row] / (1 - 0.9**time), second[name][row] / (1 - 0.999**time)
                    change = mean / (np.sqrt(square) + 1e-8)
                expected[name][row] = expected[name][row] - 0.1 * change
        optimizer.step(theta, gradients, 0.1, work, shrink=0.5, time=time)
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
