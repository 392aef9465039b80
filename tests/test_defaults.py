"""What is chosen where nothing is said."""

import math
from dataclasses import replace

import pytest

from rnnlm.defaults import choose
from rnnlm.model import CELLS
from rnnlm.settings import CHOSEN, RunSettings

TREEBANK = 929_589


def chosen(predictions=TREEBANK, words=10_000, **options):
    """Return the settings of a training with these options."""
    return choose(RunSettings.of("text.txt", options), predictions, words)


def test_what_is_given_is_left():
    """Each option of those that may be chosen stays as it was said, and is not among the chosen."""
    given = {
        "hidden": 77,
        "tied": False,
        "carry_state": False,
        "batch_size": 3,
        "lr": 0.1,
        "rate_power": 0.25,
        "dropout": 0.05,
        "weight_decay": 0.0,
        "average": False,
        "epochs": 2,
        "decay_from": 1,
        "lr_decay": 3.0,
        "min_improvement": 0.01,
        "patience": 4,
    }
    settings = chosen(cell="lstm", **given)
    assert {**vars(settings.network), **vars(settings.training)}.items() >= given.items()
    assert settings.chosen == ("dropout_state",)
    assert set(given) | {"dropout_state"} == set(CHOSEN)


@pytest.mark.parametrize("cell", CELLS)
def test_cells_with_gates_are_tied_and_carry_their_state(cell):
    """The others have tables of their own and a state of zero at each sentence."""
    gated = cell in ("gru", "lstm")
    settings = chosen(cell=cell)
    assert (settings.network.tied, settings.network.carry_state) == (gated, gated)
    assert (settings.training.lr_decay == 1) == (settings.training.decay_from == 0) == gated
    assert settings.training.dropout_state == 0.5 * gated
    assert chosen(cell=cell, carry_state=True).training.dropout_state == 0.5 * gated


def test_small_texts_have_more_dropout_and_more_epochs():
    """Dropout, weight decay and epochs fall as the text grows, within their limits."""
    found = [chosen(predictions).training for predictions in (2_000, 10**5, TREEBANK, 10**7, 10**9)]
    for name in ("dropout", "weight_decay", "epochs"):
        values = [getattr(settings, name) for settings in found]
        assert values == sorted(values, reverse=True)
        assert values[0] > values[-1]
    assert found[0].dropout > 0.4
    assert found[2].dropout == 0.25
    assert found[-1].epochs == 5


def test_short_epochs_are_many():
    """A text of few windows is read more often, and each epoch decides less."""
    usual, short = chosen().training, chosen(2_600, 300).training
    assert (usual.patience, usual.min_improvement, usual.decay_from) == (3, 0.003, 2)
    assert short.epochs > 100
    assert short.patience > 20
    assert short.min_improvement < 0.0005
    assert chosen(2_600, 300, batch_size=1).training.epochs < short.epochs  # it has more windows


@pytest.mark.parametrize("predictions", [2_600, TREEBANK, 10**8])
def test_an_elman_networks_rate_falls_to_a_thirtieth(predictions):
    """It is constant in the first sixth of the epochs; fewer epochs than usual can be resumed, more change the fall."""
    usual, few, many = (chosen(predictions, **options).training for options in ({}, {"epochs": 1}, {"epochs": 400}))
    for training in (usual, many):
        assert training.lr_decay ** (training.epochs - training.decay_from) == pytest.approx(30, rel=0.02)
        assert training.decay_from == max(1, round(training.epochs / 6))
        assert training.lr == pytest.approx(0.001 / max(1, predictions / TREEBANK) ** 0.5, rel=0.05)
    assert replace(few, epochs=usual.epochs) == usual


def test_a_rate_falls_to_a_thirtieth_in_very_many_epochs():
    """The factor is as exact as it must be to be raised to the power of as many."""
    training = chosen(2_600, epochs=100_000).training
    assert training.lr_decay ** (training.epochs - training.decay_from) == pytest.approx(30, rel=0.01)


@pytest.mark.parametrize("cell", ["elman", "lstm"])
def test_the_rate_falls_to_a_thirtieth_from_the_epoch_that_is_given_on(cell):
    """Whatever the cell: an option without effect would be a trap.

    Where nobody knows how many epochs it will fall for, it is halved.
    """
    training = chosen(cell=cell, decay_from=4).training
    assert training.lr_decay ** (training.epochs - 4) == pytest.approx(30, rel=0.02)
    for start in (0, training.epochs, 1000):
        assert chosen(cell=cell, decay_from=start).training.lr_decay == 2


@pytest.mark.parametrize("cell", ["elman", "lstm"])
def test_momentum_lowers_the_rate(cell):
    """The sum of gradients that it keeps is ten times as long as one of them with 0.9."""
    assert chosen(cell=cell, momentum=0.9).training.lr == pytest.approx(chosen(cell=cell).training.lr / 10)


def test_a_small_vocabulary_needs_little_dropout():
    """It is the parameters for each word of the text that are learned by heart."""
    assert chosen(200_000, 313).training.dropout < 0.2 < chosen(200_000, 7_000).training.dropout


def test_tied_tables_decide_the_size():
    """One table of words for both is as wide as the embedding that is given; an LSTM's is tied where that can be."""
    assert chosen(tied=True, embedding=60).network.hidden == 60
    assert not chosen(cell="lstm", embedding=60).network.tied
    assert chosen(cell="lstm", embedding=60, hidden=60).network.tied


def test_nothing_stays_open():
    """Every setting has a value, and choosing again changes nothing."""
    settings = chosen(cell="gru", optimizer="adam")
    assert None not in (settings.training.batch_size, settings.training.lr, settings.training.rate_power)
    assert choose(settings, TREEBANK, 10_000) == settings
    assert math.isclose(settings.training.lr, 0.002)
    assert choose(replace(settings, chosen=()), 5_000, 100) == replace(settings, chosen=())


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("elman", {"dropout": 0.25, "weight_decay": 0.001, "lr_decay": 1.3277, "epochs": 14, "batch_size": 64}),
        ("lstm", {"dropout": 0.21, "weight_decay": 0.0003, "lr_decay": 1.0, "epochs": 8, "batch_size": 20}),
    ],
)
def test_choices_for_the_treebank_are_those_of_the_trials(cell, expected):
    """docs/benchmarks.md has them; a table that is tied counts as the two whose work it does."""
    settings = chosen(cell=cell)
    assert settings.network.hidden == 200
    assert {name: getattr(settings.training, name) for name in expected} == expected
    assert chosen(cell=cell, tied=False).training.dropout == chosen(cell=cell, tied=True).training.dropout
