"""What `rnnlm gradflow` finds, held against every pair by itself, and against gradients with and without truncation."""

import json
import math
import re

import numpy as np
import pytest

import test_cli
from conftest import in_full
from rnnlm import gradflow
from rnnlm.batches import windows
from rnnlm.corpus import Corpus
from rnnlm.errors import ModelError, TextError
from rnnlm.gradflow import TOLERANCE, gradient_flow
from rnnlm.model import CELLS, LanguageModel, ModelSettings, Workspace, initialize
from rnnlm.pictures import draw_flow
from rnnlm.tracing import trace, truncated

run, corpus, model = test_cli.run, test_cli.corpus, test_cli.model  # fixtures


def network(cell="elman", layers=1, carry=False, scale=1.5, **settings):
    """Return a small model in float64, its W made larger so that errors go far."""
    made = ModelSettings(9, 4, cell, None, carry, layers=layers, **settings)
    parameters = initialize(made, np.ones(9), np.random.default_rng(3), np.float64).parameters
    return LanguageModel(made, {name: value * (scale if name[0] == "W" else 1) for name, value in parameters.items()})


def text(sentences=60, longest=14):
    """Return a text of random sentences."""
    generator = np.random.default_rng(5)
    lengths = generator.integers(1, longest, sentences)
    ids = np.concatenate([np.append(generator.integers(1, 9, length), 0) for length in lengths]).astype(np.int32)
    return Corpus(ids, np.cumsum([0, *(lengths + 1)], dtype=np.int64), 0, 8)


def sentences_of(corpus):
    """Return the ids of each sentence, without its end."""
    return [corpus.ids[start : stop - 1] for start, stop in zip(corpus.offsets[:-1], corpus.offsets[1:], strict=True)]


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_means_are_those_of_the_triangles(cell, layers):
    """The mean norm at each lag, of delta and of the carriers, is that over the triangles of all sentences."""
    sizes = {"tied": True, "embedding": 3} if layers == 2 else {}
    language_model, lags = network(cell, layers, **sizes), 5
    flow = gradient_flow(language_model, text(), Workspace(), lags=lags)
    traces = [trace(language_model, sentence) for sentence in sentences_of(text())]
    assert flow.errors == sum(len(one.x) for one in traces)
    for number, layer in enumerate(flow.layers):
        for lag in range(lags + 1):
            deltas = np.concatenate([np.diagonal(one.layers[number].delta, -lag).T for one in traces])
            assert flow.pairs[lag] == len(deltas)
            assert layer.delta[lag] == pytest.approx(np.linalg.norm(deltas, axis=1).mean(), rel=1e-9)
            for state, means in enumerate(layer.dstates):
                parts = [np.diagonal(one.layers[number].dstates[state], -lag).T for one in traces]
                assert means[lag] == pytest.approx(np.linalg.norm(np.concatenate(parts), axis=1).mean(), rel=1e-9)
        slopes = np.concatenate([one.layers[number].slopes for one in traces])
        H = language_model.settings.units[number]
        for at, gate in enumerate(layer.gates):
            assert gate.slope == pytest.approx(np.abs(slopes[:, at * H : (at + 1) * H]).mean(), rel=1e-9)


def test_sums_beyond_each_lag():
    """What lies beyond a lag is the share of all pairs' norms at larger ones."""
    flow = gradient_flow(network(), text(), Workspace(), lags=6)
    (layer,) = flow.layers
    sums = layer.delta * flow.pairs
    np.testing.assert_allclose(layer.beyond, [sums[lag + 1 :].sum() / sums.sum() for lag in range(7)], atol=1e-12)
    assert layer.beyond[-1] == 0


def gradients_of_the_text(language_model, corpus, K):
    """Return all that truncation acts on of the gradient of the sum of a text's losses, by `losses`."""
    total = {name: np.zeros_like(value) for name, value in language_model.parameters.items()}
    states, work = language_model.start(1), Workspace()
    for x, y in windows(corpus, 1, 10**6):
        _, backward = truncated(language_model, K).losses(x, y, states, work)
        for name, gradient in backward(np.ones(y.shape)).items():
            total[name] += in_full(gradient, total[name])
    return {name: value for name, value in total.items() if name[0] not in "Vc"}


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_the_advice_holds(cell, layers):
    """Truncated as advised, the gradient of the text loses what was said, at most 1%; where there is none, more."""
    language_model, corpus, lags = network(cell, layers), text(), 8
    flow = gradient_flow(language_model, corpus, Workspace(), lags=lags)
    whole = gradients_of_the_text(language_model, corpus, None)
    size = math.hypot(*(np.linalg.norm(value) for value in whole.values()))
    for K, said in flow.lost.items():
        found = gradients_of_the_text(language_model, corpus, K)
        lost = math.hypot(*(np.linalg.norm(found[name] - value) for name, value in whole.items())) / size
        assert said == pytest.approx(lost, rel=1e-6, abs=1e-12)
    assert (flow.advice is None) == (flow.lost[lags] > TOLERANCE if lags in flow.lost else False)
    if flow.advice is not None:
        assert flow.lost[flow.advice] <= TOLERANCE
        assert all(share > TOLERANCE for K, share in flow.lost.items() if flow.advice > K)


def test_a_carried_state_is_followed_across_sentences():
    """Where the state is carried, an error has all lags, but for those at the beginning of the text."""
    carried = gradient_flow(network(carry=True), text(), Workspace(), lags=20)
    reset = gradient_flow(network(), text(), Workspace(), lags=20)
    assert reset.pairs[14:].sum() == 0
    assert carried.pairs[20] > 0.6 * carried.errors
    assert carried.pairs[0] == carried.errors


def test_windows_cut_no_error(monkeypatch):
    """In short windows, errors that reach out of them are left out: the means stay about the same."""
    long = gradient_flow(network(), text(400), Workspace(), lags=4)
    monkeypatch.setattr(gradflow, "STEPS", 16)
    short = gradient_flow(network(), text(400), Workspace(), lags=4)
    assert 0.5 * long.errors < short.errors < long.errors
    np.testing.assert_allclose(short.layers[0].delta, long.layers[0].delta, rtol=0.1)


def test_threads_change_nothing():
    """The same figures to the bit, on one thread and on two."""
    one, two = (gradient_flow(network("lstm", 2), text(), work) for work in (Workspace(1), Workspace(2)))
    assert one.lost == two.lost
    assert all(np.array_equal(a.delta, b.delta) for a, b in zip(one.layers, two.layers, strict=True))


def test_it_stops_after_so_many_words():
    """Of a long text only as much is read as is asked for, by whole windows."""
    long = text(4000)
    assert 3000 <= gradient_flow(network(), long, Workspace(), lags=8, words=3000).errors < 6000


@pytest.mark.parametrize(("scale", "verdict"), [(0.5, "vanish"), (8, "explode")])
def test_the_verdict_follows_W(scale, verdict):  # noqa: N802 -- the letter of the page
    """Where W shrinks vectors gradients vanish; with a relu that passes them, a large W makes them explode."""
    flow = gradient_flow(network("relu", scale=scale), text(), Workspace(), lags=6)
    (layer,) = flow.layers
    assert layer.verdict == verdict
    W = network("relu", scale=scale).parameters["W1"]
    assert layer.gates[0].radius == pytest.approx(np.abs(np.linalg.eigvals(W)).max())
    assert layer.gates[0].singular == pytest.approx(np.linalg.svd(W)[1][0])


def test_numbers_that_are_none_are_refused():
    """NaN in W, gradients that overflow, and a text without sentences."""
    broken = network()
    broken.parameters["V"][0, 0] = np.nan
    with np.errstate(all="ignore"), pytest.raises(ModelError, match="no longer numbers"):
        gradient_flow(broken, text(), Workspace())
    with np.errstate(all="ignore"), pytest.raises(ModelError, match="no longer numbers"):
        gradient_flow(network("relu", scale=1e200), text(), Workspace())
    large = network("relu", scale=8)  # its deltas are numbers, and their sums are not
    large.parameters["V"] *= 1e300
    with np.errstate(all="ignore"), pytest.raises(ModelError, match="no longer numbers"):
        gradient_flow(large, text(), Workspace(), lags=2)
    with pytest.raises(TextError, match="no sentences"):
        gradient_flow(network(), Corpus(np.zeros(0, np.int32), np.zeros(1, np.int64), 0, 0), Workspace())


# ---------------------------------------------------------------------------------------------------------------------
# The command


def test_the_table_and_the_advice(run, corpus, model):
    """80 columns, a line for each lag shown, what was measured, and an advice that can be typed."""
    code, out, _ = run("gradflow", corpus, "--lags", 12)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert re.search(r"^ +lag +pairs +\|delta\| +of lag 0 +\|dE/ds\| +beyond$", out, re.M)
    assert re.search(
        r"^99% of the gradient's norm is within \d+ steps?: --bptt-truncate \d+ loses [\d.]+%\.", out, re.M
    )


def test_json(run, corpus, model):
    """All lags, and numbers that agree with one another."""
    code, out, _ = run("gradflow", corpus, "--lags", 6, "--json", "--words", 50)
    report = json.loads(out)
    assert code == 0
    (layer,) = report["layers"]
    assert len(layer["delta"]) == len(layer["ds"]) == len(report["pairs"]) == 7
    assert report["lost"][str(report["bptt_truncate"])] <= TOLERANCE


def test_two_models_are_drawn_side_by_side(run, corpus, model, tmp_path):
    """Standard output has the first, the picture both."""
    pytest.importorskip("matplotlib")
    run("train", corpus, *test_cli.SMALL, "--epochs", 1, "--cell", "lstm", "--model", "lstm")
    alone = run("gradflow", corpus, "--lags", 8)
    both = run("gradflow", corpus, "--lags", 8, "--beside", "lstm", "--picture", "both.svg")
    assert both == alone
    assert (tmp_path / "both.svg").stat().st_size > 1000


def test_an_lstm_has_two_carriers(run, corpus):
    """Both columns stand in the table of each layer, with a line for each gate."""
    assert run("train", corpus, *test_cli.SMALL, "--epochs", 1, "--cell", "lstm", "--layers", 2)[0] == 0
    code, out, _ = run("gradflow", corpus)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert out.count("|dE/dc|") == 2
    assert all(f"  gate {gate} " in out for gate in "oifg")


@pytest.mark.parametrize(
    ("content", "arguments", "code", "message"),
    [
        (b"", (), 1, "text.txt"),
        (b"a \xff b\n", (), 1, "line 1"),
        (None, (), 1, "no such file"),
        (b"the cat .\n", ("--lags", 0), 2, "from 1"),
        (b"the cat .\n", ("--lags", 10**9), 2, "up to 256"),
        (b"the cat .\n", ("--words", -1), 2, "from 1"),
        (b"the cat .\n", ("--words", "nan"), 2, "nan"),
        (b"the cat .\n", ("--picture", "x"), 2, ".svg"),
        (b"the cat .\n", ("--beside", "x"), 2, "--picture"),
        (b"the cat .\n", ("--picture", "x.svg", "--beside", "nowhere"), 1, "nowhere"),
        (b"the cat .\n", ("--picture", "nowhere/x.png"), 1, "nowhere/x.png"),
        (b"the cat .\n", ("--model", "nowhere"), 1, "nowhere"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(run, model, content, arguments, code, message):
    """Usage exits with 2, all else with 1; the file, and the remedy."""
    if content is not None:
        test_cli.Path("text.txt").write_bytes(content)
    found, out, err = run("gradflow", "text.txt", *arguments)
    assert (found, out) == (code, "")
    assert message in err
    assert err.count("Error: ") == 1


def test_a_single_word_is_enough(run, model):
    """A text of one word has two errors, and lags that no error has."""
    test_cli.Path("text.txt").write_text("cat\n")
    code, out, err = run("gradflow", "text.txt")
    assert code == 0, err
    assert out.startswith("2 errors")


def test_pictures_lay_models_side_by_side(tmp_path, monkeypatch):
    """A line for each layer of each model, one for an LSTM's cell states, and their advice; an SVG and a PDF."""
    pytest.importorskip("matplotlib")
    flows = {name: gradient_flow(network(name), text(), Workspace(), lags=4) for name in ("elman", "lstm")}
    draw_flow(flows, tmp_path / "a.svg")
    picture = (tmp_path / "a.svg").read_text("utf-8")
    assert picture.startswith("<?xml")
    assert picture.count("stroke-dasharray: 1.5,2.475") == 2  # dotted: the line, and its key
    from matplotlib.axes import Axes

    labels = []
    plot = Axes.plot
    monkeypatch.setattr(
        Axes, "plot", lambda self, *args, **how: labels.append(how["label"]) or plot(self, *args, **how)
    )
    draw_flow(
        {f"{'long/' * 20}{name}": flow for name, flow in flows.items()} | {"_x": flows["elman"]}, tmp_path / "b.svg"
    )
    assert [label.partition(" of ")[2].partition(":")[0][-8:] for label in labels] == [
        "ng/elman",
        "ong/lstm",
        "ong/lstm",
        "_x",
    ]
    draw_flow({"": flows["elman"]}, tmp_path / "a.pdf")
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
