"""The picture of a run: what its axes show, and what keeps it from being drawn."""

import json
import re
import sys
from pathlib import Path

import pytest

import test_cli
from rnnlm.curve import draw_curve, draw_runs
from rnnlm.training import Record

figure = pytest.importorskip("matplotlib.figure")
run, corpus, model = test_cli.run, test_cli.corpus, test_cli.model  # fixtures


def record(epoch, window, train, valid, ended=True):
    """Return an evaluation."""
    return Record(epoch, window, train, train if ended else None, valid, None, 0.1, 1.0, 100)


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Return a function that draws, and gives the axes that were drawn."""
    figures = []
    save = figure.Figure.savefig

    def keep(self, *arguments, **keywords):
        figures.append(self)
        save(self, *arguments, **keywords)

    monkeypatch.setattr(figure.Figure, "savefig", keep)

    def draw(history, by="epoch"):
        if isinstance(history, dict):
            assert draw_runs(history, tmp_path / "runs.svg", by) is None
            return figures[-1].axes[0]
        assert draw_curve(history, tmp_path / "curve.svg") is None
        assert (tmp_path / "curve.svg").read_bytes().lstrip().startswith(b"<?xml")
        return figures[-1].axes[0]

    return draw


def shown(ticks, limits):
    """Return the labels of ticks within limits."""
    return [label.get_text() for label in ticks if limits[0] <= label.get_position()[1] <= limits[1]]


def test_perplexities_stand_over_epochs(drawn):
    """An evaluation in the middle of an epoch stands there; the best one has a mark, and says what it is."""
    history = [
        record(1, 50, 400, 300, ended=False),
        record(1, 100, 300, 250),
        record(2, 50, 200, 210, ended=False),
        record(2, 99, 190, 220),  # epochs have not all as many windows
    ]
    axes = drawn(history)
    training, validation, best = axes.get_lines()
    assert list(validation.get_xdata()) == [0.5, 1, 1.5, 2]
    assert list(training.get_xdata()) == [1, 2]
    assert list(training.get_ydata()) == [300, 190]
    assert list(validation.get_ydata()) == [300, 250, 210, 220]
    assert (best.get_xdata()[0], best.get_ydata()[0], best.get_label()) == (1.5, 210, "best: 210.00")
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_yscale()) == ("epoch", "perplexity", "log")


@pytest.mark.parametrize(("lowest", "highest"), [(60, 900), (7.5, 15.7), (117, 180), (1.2, 5e6), (300, 301)])
def test_ticks_are_plain_numbers(drawn, lowest, highest):
    """Whatever the range, several ticks stand in it, written as people write numbers, each its own."""
    axes = drawn([record(1, 9, highest, highest), record(2, 9, lowest, lowest)])
    labels = shown(axes.get_yticklabels(), axes.get_ylim())
    assert 2 <= len(labels) == len(set(labels))
    assert not any("10^" in label or "mathdefault" in label for label in labels)
    epochs = [label.get_text() for label in axes.get_xticklabels()]
    assert all("." not in label for label in epochs)


def test_without_matplotlib_an_old_picture_goes(tmp_path, monkeypatch):
    """Where nothing can be drawn, the picture of an older model would mislead."""
    (tmp_path / "curve.svg").write_text("old")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    problem = draw_curve([record(1, 1, 2, 3)], tmp_path / "curve.svg")
    assert problem == "matplotlib is not installed (pip install matplotlib)"
    assert not (tmp_path / "curve.svg").exists()


@pytest.mark.parametrize(("by", "at"), [("epoch", [0.5, 1]), ("seconds", [1, 1])])
def test_runs_stand_side_by_side(drawn, by, at):
    """Each has its validation in full and its training dashed in one color, by epoch or by time, its best marked.

    A name that means something to matplotlib, an underscore first or a formula, is shown as it is.
    """
    axes = drawn(
        {"_a$b$": [record(1, 50, 400, 300, ended=False), record(1, 100, 300, 250)], "c": [record(1, 9, 90, 100)]}, by
    )
    valid, train, best, *others = axes.get_lines()
    assert (list(valid.get_xdata()), list(train.get_xdata())) == (at, at[1:])
    assert (list(valid.get_ydata()), list(train.get_ydata())) == ([300, 250], [300])
    assert list(best.get_ydata()) == [250]
    assert (train.get_linestyle(), {line.get_color() for line in (valid, train, best)}) == ("--", {valid.get_color()})
    assert others[0].get_color() != valid.get_color()
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == [r"250.00  _a\$b\$", "100.00  c"]
    assert (axes.get_xlabel(), axes.get_yscale()) == ("epoch" if by == "epoch" else "seconds of training", "log")


def test_a_run_within_its_first_epoch_is_drawn(drawn):
    """The perplexity in training is not known before the first epoch ends."""
    early = Record(1, 5, 300.0, None, 250.0, None, 0.1, 1.0, 100)
    training, validation, _ = drawn([early]).get_lines()
    assert (list(training.get_ydata()), list(validation.get_ydata())) == ([], [250])
    training = drawn({"a": [early]}).get_lines()[1]
    assert list(training.get_ydata()) == []


def test_the_command_compares_models(run, model):
    """A line for each model, of its folder or its file, the picture if it is asked for, and all evaluations as JSON."""
    code, out, err = run("curve", "model", "model/best.npz", "-o", "both.SVG")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    assert [re.split(r" +", line)[0] for line in out.splitlines()] == ["model", "model", "model/best.npz"]
    assert Path("both.SVG").read_bytes().lstrip().startswith(b"<?xml")
    (found,) = json.loads(run("curve", "model", "--json")[1]).values()
    lines = [json.loads(line) for line in Path("model/history.jsonl").read_text().splitlines()]
    assert [{"run": line["run"], **record} for line, record in zip(lines, found, strict=True)] == lines


def test_a_history_is_believed_in_order_only(run, model):
    """One whose lines come twice is refused; the file that training goes on from has the evaluations itself."""
    expected = run("curve", "model/last.npz", "--json")
    lines = Path("model/history.jsonl").read_bytes()
    Path("model/history.jsonl").write_bytes(lines * 2)
    code, out, err = run("curve", "model")
    assert (code, out) == (1, "")
    assert "history.jsonl: is damaged" in err
    assert test_cli.SENTENCE.search(err)
    for damaged in (lines * 2, b""):
        Path("model/history.jsonl").write_bytes(damaged)
        assert run("curve", "model/last.npz", "--json") == expected


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "Missing argument"),
        (("model", "missing"), 1, "missing: "),
        (("model/last.npz", "new.npz"), 1, "has not been evaluated yet"),
        (("model", "-o", "a.gif"), 2, "ends in .svg, .png or .pdf"),
        (("model", "-o", "nowhere/a.svg"), 1, "name another file with -o"),
        (("model", "-o", "a\0.svg"), 2, ""),
        (("model", "--by", "week"), 2, "--by"),
        (("model", "--by", "seconds"), 2, "--by is of the picture; give -o too, or leave it out"),
    ],
)
def test_what_cannot_be_compared(run, corpus, model, arguments, code, message):
    """Nothing is half done, and a sentence says what is wrong."""
    if "new.npz" in arguments:
        import rnnlm

        for event in rnnlm.train(corpus, "new", pretokenized=True, hidden=4, save_every="1"):
            if isinstance(event, rnnlm.Progress):
                break
        Path("new/new.npz").rename("new.npz")
    found, out, err = run("curve", *arguments)
    assert (found, out) == (code, "")
    assert test_cli.SENTENCE.search(err)
    assert message in err


def test_a_comparison_needs_matplotlib_for_the_picture_alone(run, model, monkeypatch):
    """The remedy is named; the table is printed without it."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, err = run("curve", "model", "-o", "a.svg")
    assert (code, out) == (1, "")
    assert "pip install matplotlib" in err
    assert run("curve", "model")[0] == 0
