"""The picture of a run: what its axes show, and what keeps it from being drawn."""

import sys

import pytest

from rnnlm.curve import draw_curve
from rnnlm.training import Record

figure = pytest.importorskip("matplotlib.figure")


def record(epoch, window, train, valid):
    """Return an evaluation."""
    return Record(epoch, window, train, train, valid, None, 0.1, 1.0, 100)


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Return a function that draws, and gives the axes that were drawn."""
    figures = []
    save = figure.Figure.savefig

    def keep(self, *arguments, **keywords):
        figures.append(self)
        save(self, *arguments, **keywords)

    monkeypatch.setattr(figure.Figure, "savefig", keep)

    def draw(history):
        assert draw_curve(history, tmp_path / "curve.svg") is None
        assert (tmp_path / "curve.svg").read_bytes().lstrip().startswith(b"<?xml")
        return figures[-1].axes[0]

    return draw


def shown(ticks, limits):
    """Return the labels of ticks within limits."""
    return [label.get_text() for label in ticks if limits[0] <= label.get_position()[1] <= limits[1]]


def test_perplexities_stand_over_epochs(drawn):
    """An evaluation in the middle of an epoch stands there; the best one has a mark, and says what it is."""
    history = [record(1, 50, 400, 300), record(1, 100, 300, 250), record(2, 50, 200, 210), record(2, 100, 190, 220)]
    axes = drawn(history)
    training, validation, best = axes.get_lines()
    assert list(training.get_xdata()) == list(validation.get_xdata()) == [0.5, 1, 1.5, 2]
    assert list(training.get_ydata()) == [400, 300, 200, 190]
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
