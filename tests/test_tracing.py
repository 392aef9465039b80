"""What `rnnlm trace` is made of: every delta_t(k) of a sentence, held against the page, and against differences."""

import itertools
import json
import re

import numpy as np
import pytest

import test_cli
from conftest import in_full
from rnnlm.errors import ModelError, SettingsError, TextError
from rnnlm.model import (
    CELLS,
    SENTENCE_END,
    LanguageModel,
    ModelSettings,
    Workspace,
    initialize,
)
from rnnlm.tracing import (
    LONGEST,
    TUTORIAL_SENTENCE,
    additions,
    digits,
    pair,
    trace,
    truncated,
    tutorial,
    tutorial_ids,
)
from test_derivation import GIVEN, MODEL_NAMES, PARAMETERS, STEPS, example_by_loops

run, corpus, model = test_cli.run, test_cli.corpus, test_cli.model  # fixtures
WORDS = np.array([1, 2, 3, 2, 7])  # one occurs twice
KINDS = [
    (cell, layers, tied, cutoffs, embedding)
    for cell, layers in itertools.product(CELLS, (1, 2))
    for tied, cutoffs, embedding in ((False, (), None), (True, (5,), 2 if layers > 1 else None), (False, (4, 6), 5))
]


def small_model(cell, layers=1, tied=False, cutoffs=(), embedding=None, carry=False):
    """Return a model of three units whose deltas are not small."""
    settings = ModelSettings(9, 3, cell, None, carry, cutoffs, layers, embedding, tied)
    made = initialize(settings, np.ones(9), np.random.default_rng(1), np.float64)
    return LanguageModel(settings, {name: 3 * value for name, value in made.parameters.items()})


def test_the_tutorial_has_the_numbers_of_the_page():
    """The parameters, the deltas, the losses and the terms of dW are those that docs/derivation.md prints."""
    network, by_loops = tutorial(), example_by_loops()
    for name in GIVEN:
        assert np.array_equal(network.parameters[MODEL_NAMES[name]], PARAMETERS[name])
    found = trace(network, tutorial_ids(TUTORIAL_SENTENCE))
    for t in STEPS:
        assert found.losses[t - 1] == pytest.approx(by_loops[f"E_{t}"][0])
        for k in range(1, t + 1):
            np.testing.assert_allclose(found.layers[0].delta[t - 1, k - 1], by_loops[f"delta_{t}({k})"], atol=1e-15)
            (added,) = (one for one in additions(found, 1, t, k) if one.name == "W1")
            np.testing.assert_allclose(
                np.outer(added.left, added.right), by_loops[f"delta_{t}({k}) s_{k - 1}'"], atol=1e-15
            )


@pytest.mark.parametrize("K", [None, 0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_pairs_add_up_to_the_gradients_of_training(kind, K):
    """For every kind of model, the sum over the kept pairs is the gradient of `losses`, to 13 digits."""
    network = small_model(*kind)
    found = trace(network, WORDS, K)
    _, backward = truncated(network, K).losses(found.x[:, None], found.y[:, None], network.start(1), Workspace())
    gradients = {
        name: in_full(gradient, network.parameters[name])
        for name, gradient in backward(np.ones((len(found.x), 1))).items()
    }
    for term in found.terms():
        assert term.digits >= 13, term.name
        assert term.cut == 0 or K is not None
        expected = gradients.get(term.name[1:])
        if term.name == "dU" and expected is not None:
            np.testing.assert_allclose(term.total, expected[np.unique(found.x)], atol=1e-12)
        elif expected is not None:
            np.testing.assert_allclose(term.total, expected, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_each_pair_is_made_of_the_one_after_it(kind):
    """What is shown of a pair adds up to both carriers and to delta, in every layer."""
    found = trace(small_model(*kind), WORDS)
    for layer, t in itertools.product(range(1, kind[1] + 1), range(1, len(WORDS) + 2)):
        for k in range(1, t + 1):
            shown = pair(found, layer, t, k)
            assert shown.digits >= 13
            assert [gate.gate for gate in shown.gates] == list(CELLS[kind[0]].gates)


def losses_after(network, found, k, nudge):
    """Return E_t for t > k where the states after k steps are put through `nudge` (in place)."""
    (_, states), _ = network.read(found.x[:k, None], network.start(1), Workspace())
    nudge(states[:, :, 0])
    (losses, _), _ = network.losses(found.x[k:, None], found.y[k:, None], states, Workspace())
    return losses[:, 0]


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_carriers_are_derivatives(cell, layers):
    """A nudge of s_k, or of c_k with the s_k that follows from it, moves each later E_t as dE_t/ds, dE_t/dc say."""
    network, k, step = small_model(cell, layers), 3, 1e-6
    found = trace(network, WORDS)
    for layer, number, unit in itertools.product(range(layers), range(len(CELLS[cell].states)), range(3)):

        def nudge(states, by, layer=layer, number=number, unit=unit):
            own = states[layer]  # (M, H)
            if number == 1:
                o = own[0, unit] / np.tanh(own[1, unit])
                own[0, unit] = o * np.tanh(own[1, unit] + by)
            own[number, unit] += by

        up, down = (losses_after(network, found, k, lambda states, by=by: nudge(states, by)) for by in (step, -step))
        shown = found.layers[layer].dstates[number, k:, k - 1, unit].copy()
        if layer < layers - 1:  # what goes up at the step itself was not nudged
            above, reads = found.layers[layer + 1], CELLS[cell].part(CELLS[cell].reads, 3)
            up_there = (above.delta[k:, k - 1, reads] @ network.parameters[f"X{layer + 2}"])[:, unit]
            shown -= up_there * (found.layers[layer].carry[0, k - 1, unit] if number else 1)
        np.testing.assert_allclose(shown, (up - down) / (2 * step), atol=2e-7)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", ["elman", "gru", "lstm"])
def test_deltas_are_derivatives(cell, layers):
    """A bias that is moved at step k alone nudges z_k; E_t moves as delta_t(k) says, at t = k and later."""
    network, k, step = small_model(cell, layers), 3, 1e-6
    found = trace(network, WORDS)
    for layer in range(layers):
        name = f"b{layer + 1}"
        for unit in range(len(network.parameters[name])):
            sums = []
            for by in (step, -step):
                parameters = {**network.parameters, name: network.parameters[name].copy()}
                parameters[name][unit] += by
                at, states = slice(k - 1, k), network.start(1)
                (_, states), _ = network.read(found.x[: k - 1, None], states, Workspace())
                moved = LanguageModel(network.settings, parameters)
                (now, states), _ = moved.losses(found.x[at, None], found.y[at, None], states, Workspace())
                (later, _), _ = network.losses(found.x[k:, None], found.y[k:, None], states, Workspace())
                sums.append(np.concatenate((now[:, 0], later[:, 0])))
            shown = found.layers[layer].delta[k - 1 :, k - 1, unit]
            np.testing.assert_allclose(shown, (sums[0] - sums[1]) / (2 * step), atol=2e-7)


def test_a_planted_fault_is_seen():
    """A delta that is wrong by 0.1% leaves three digits of agreement, and not fifteen."""
    found = trace(small_model("lstm"), WORDS)
    found.layers[0].delta[...] *= 1.001
    assert {term.digits for term in found.terms()} <= {2, 3}
    assert pair(found, 1, 4, 2).digits <= 3


@pytest.mark.parametrize(
    ("found", "expected", "count"), [(1.0, 1.0, 16), (1.001, 1.0, 3), (0.0, 0.0, 16), (1.0, 0.0, 0)]
)
def test_digits(found, expected, count):
    """The digits that two arrays share are counted from the largest number; what should be zero has all or none."""
    with np.errstate(divide="ignore"):
        assert digits(np.array([found]), np.array([expected])) in (count, count - 1)


def test_what_cannot_be_traced_is_said():
    """Too long a sentence, numbers that are none, pairs and words that do not exist."""
    network = small_model("elman")
    with pytest.raises(TextError, match="at most 100"):
        trace(network, np.ones(LONGEST + 1, np.int32))
    found = trace(network, np.zeros(0, np.int32))
    assert found.x.tolist() == [SENTENCE_END]
    with pytest.raises(SettingsError, match="--at is 1 2"):
        pair(found, 1, 1, 2)
    with pytest.raises(SettingsError, match="--layer is 2"):
        pair(found, 2, 1, 1)
    with pytest.raises(TextError, match="'dogs'"):
        tutorial_ids("dogs chase")
    network.parameters["W1"][0, 0] = np.nan
    with np.errstate(all="ignore"), pytest.raises(ModelError, match="no longer numbers"):
        trace(network, WORDS)


# ---------------------------------------------------------------------------------------------------------------------
# The command


def test_the_tutorial_is_printed(run):
    """Surprisals, the triangle, what truncation cuts in brackets, and a pair with its equation in numbers."""
    code, out, _ = run("trace", "--tutorial", "--bptt-truncate", 1, "--at", 3, 2, "--terms")
    assert code == 0
    assert "  3  cats         [0.450]    0.570    0.668\n" in out
    assert "3 of 10 pairs are cut." in out
    assert "delta_3(2)[1] = (0.9 * 0.51902 + 0.4 * -0.42080) * (1 - 0.18544^2) = 0.28853" in out
    assert "What each pair adds to dW1" in out
    assert max(map(len, out.splitlines())) <= 80


def test_a_truncation_beyond_the_sentence_cuts_nothing(run):
    """However large the number is, it is that of no truncation."""
    out = run("trace", "--tutorial", "--bptt-truncate", 10**30)[1]
    assert "[" not in out
    assert "cut." not in out


def test_json_has_all_numbers(run):
    """The triangle row by row, the gradients, and the pair's vectors."""
    code, out, _ = run("trace", "--tutorial", "cats chase", "--at", 2, 1, "--json")
    report = json.loads(out)
    assert code == 0
    assert report["reads"] == ["</s>", "cats", "chase"]
    assert [len(row) for row in report["layers"][0]["delta"]] == [1, 2, 3]
    assert {one["name"] for one in report["gradients"]} == {"dU", "dW1", "db1"}
    at = report["at"]
    product = [d * slope for d, slope in zip(at["gates"][0]["dstate"], at["gates"][0]["slope"], strict=True)]
    assert product == pytest.approx(at["gates"][0]["delta"])


@pytest.mark.parametrize("cell", ["relu", "sigmoid", "gru", "lstm"])
def test_a_saved_model_is_traced(run, corpus, cell):
    """A model of two layers in 80 columns, long sentences in several panels; an LSTM shows both carriers."""
    options = ("--cell", cell, "--layers", 2, "--tied", "--bptt-truncate", 3)
    assert run("train", corpus, *test_cli.SMALL, "--epochs", 1, *options)[0] == 0
    sentence = "the cat sees it . " * 5 + "unheardofwordthatislong"
    code, out, err = run("trace", sentence, "--at", 20, 18, "--layer", 1, "--terms")
    assert code == 0, err
    assert max(map(len, out.splitlines())) <= 80
    assert ("|dE_t/dc_k| of layer 2" in out) == (cell == "lstm")
    assert "t - k <= 3" in out
    assert "unheardofwordthatislong" in err
    assert all(int(number) >= 12 for number in re.findall(r"(\d+) digits", out))
    assert json.loads(run("trace", "the cat", "--json")[1])["cell"] == cell


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "There is no sentence"),
        (("--tutorial", "--model", "x"), 2, "leave --model out"),
        (("--tutorial", "--layer", 1), 2, "--at"),
        (("--tutorial", "--picture", "x.doc"), 2, ".svg"),
        (("--tutorial", "--at", 0, 1), 2, "from 1"),
        (("--tutorial", "--bptt-truncate", -1), 2, "from 0"),
        (("--tutorial", "--bptt-truncate", "nan"), 2, "nan"),
        (("--tutorial", "--at", 1, 2), 1, "k = 1 to t"),
        (("--tutorial", "dogs"), 1, "cats and chase"),
        (("--tutorial", "--picture", "missing/x.svg"), 1, "missing/x.svg"),
        (("",), 1, "no words"),
        (("a <s> b",), 1, "<s>"),
        (("a\udcffb",), 1, "encoding"),
        (("a\x00b" * 200,), 1, "at most 100"),
        (("cat " * 1000,), 1, "at most 100"),
        (("the cat .", "--model", "nowhere"), 1, "nowhere"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(run, model, arguments, code, message):
    """Usage exits with 2, all else with 1, and the remedy is named."""
    found, out, err = run("trace", *arguments)
    assert (found, out) == (code, "")
    assert message in err
    assert err.count("Error: ") == 1


def test_the_picture_is_drawn(run, model, tmp_path):
    """An SVG and a PNG, of words that matplotlib would read as formulas too."""
    pytest.importorskip("matplotlib")
    assert run("trace", "the $cat$ $ _ {sees} it .", "--picture", "a.svg", "--bptt-truncate", 2)[0] == 0
    assert (tmp_path / "a.svg").read_bytes().startswith(b"<?xml")
    assert run("trace", "the cat " * 20, "--picture", "a.png")[0] == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_nothing_is_drawn(run, monkeypatch, tmp_path):
    """The sentence says what to install, and nothing is written."""
    monkeypatch.setitem(test_cli.sys.modules, "matplotlib.figure", None)
    code, out, err = run("trace", "--tutorial", "--picture", "a.svg")
    assert (code, out) == (1, "")
    assert "pip install matplotlib" in err
    assert not (tmp_path / "a.svg").exists()
