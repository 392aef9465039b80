"""The training loop, and its exact continuation from a saved state."""

import copy
import itertools
import math

import numpy as np
import pytest

from conftest import corpus_of
from rnnlm.checkpoint import ModelFolder, Origin, SavedModel, load_saved, save_training
from rnnlm.defaults import ELMAN_RATE, choose
from rnnlm.errors import DivergenceError, SettingsError
from rnnlm.model import ModelSettings, Workspace, draw_masks, initialize
from rnnlm.scoring import perplexity
from rnnlm.settings import NetworkSettings, RunSettings, TrainingSettings
from rnnlm.text import Tokenizer
from rnnlm.training import (
    Evaluation,
    Progress,
    Record,
    TrainingState,
    _window_masks,
    dropout,
    epoch_windows,
    finished,
    overfitting,
    train,
)
from rnnlm.vocabulary import Vocabulary

SUBJECTS, VERBS = ("the cat", "a dog", "the old cat", "my dog"), ("sleeps", "eats", "sees the cat", "hears a dog")
SENTENCES = [f"{subject} {verb}".split() for subject, verb in itertools.product(SUBJECTS, VERBS)] * 6
VALID = [sentence for sentence in SENTENCES if "my" not in sentence][:20]
TIMINGS = {"seconds", "words_per_second"}


def vocabulary():
    """Return the vocabulary of SENTENCES."""
    counts = {}
    for word in itertools.chain(*SENTENCES):
        counts[word] = counts.get(word, 0) + 1
    return Vocabulary.from_counts(counts, len(SENTENCES))


def open_chosen(settings):
    """Return settings with nothing left open."""
    return run_settings(settings).training


def run_settings(settings):
    """Return those of a run, in which nothing is left open."""
    network = NetworkSettings(carry_state=settings.dropout_state > 0)
    return choose(RunSettings(("-",), network=network, training=settings), 100, 20)


def begin(settings, carry_state=False, truncate=None, hidden=8):
    """Return a fresh state, the corpora and the vocabulary."""
    words = vocabulary()
    settings = open_chosen(settings)
    model_settings = ModelSettings(len(words), hidden, truncate=truncate, carry_state=carry_state)
    model = initialize(model_settings, words.counts, np.random.default_rng(settings.seed))
    state = TrainingState.begin(model, settings, words.counts)
    return state, corpus_of(SENTENCES, words), corpus_of(VALID, words), words


def flat(memory):
    """Return the arrays of an optimizer's memory, each with a name."""
    return {f"{slot} of {name}": array for name, slots in memory.items() for slot, array in slots.items()}


def weights(state):
    """Return the bytes of all that training changes."""
    average = {f"average of {name}": array for name, array in (state.average or {}).items()}
    arrays = {**state.model.parameters, **flat(state.optimizer.memory), **average}
    return {name: array.tobytes() for name, array in arrays.items()}


def untimed(history):
    """Return the history without what the clock decides."""
    return [{name: value for name, value in vars(record).items() if name not in TIMINGS} for record in history]


def test_training_learns():
    """Validation perplexity falls far below that of word frequencies, and the history says so."""
    settings = TrainingSettings(bptt=6, batch_size=4, epochs=12, lr=0.004)
    state, corpus, valid, words = begin(settings)
    events = list(train(state, settings, corpus, valid, Workspace()))
    frequency = words.counts / words.counts.sum()
    with np.errstate(divide="ignore"):
        unigram = math.exp(-np.mean(np.log(frequency)[valid.ids]))
    assert state.best_perplexity < unigram / 3
    evaluations = [event for event in events if isinstance(event, Evaluation)]
    assert [event.record for event in evaluations] == state.history
    names = {"epoch", "train_perplexity", "running_perplexity", "valid_perplexity", "learning_rate"}
    assert names | TIMINGS <= set(vars(state.history[0]))
    assert evaluations[0].improved
    assert all(record.train_perplexity < record.valid_perplexity * 1.5 for record in state.history)
    seen = sum(event.predictions for event in events if isinstance(event, Progress) and event.epoch == 1)
    assert seen == corpus.predictions


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"momentum": 0.5},
        {"dropout": 0.2, "weight_decay": 0.1, "average": True},
        {"dropout_state": 0.5},
        {"optimizer": "adagrad"},
        {"optimizer": "adam"},
    ],
    ids=str,
)
@pytest.mark.parametrize(("carry_state", "window", "truncate"), [(False, 5, None), (True, 5, 2), (False, 0, 1)])
def test_resuming_is_exact_from_any_event(tmp_path, carry_state, window, truncate, how):
    """Saved at any event and loaded again, training ends with the same bytes and the same history."""
    settings = TrainingSettings(bptt=window, batch_size=4, epochs=3, eval_every=4, **how)
    state, corpus, valid, words = begin(settings, carry_state, truncate)
    origin = Origin("a run", None, run_settings(settings), ("", ""), corpus.coverage(words))
    saved = SavedModel(state.model, words, Tokenizer(), origin)
    folder = ModelFolder(tmp_path)
    total = len(list(train(copy.deepcopy(state), settings, corpus, valid, Workspace())))
    whole = copy.deepcopy(state)
    list(train(whole, settings, corpus, valid, Workspace()))
    generator = np.random.default_rng([window, carry_state, *map(ord, str(how))])  # other events in each case
    for stop in generator.choice(total, size=min(total, 4), replace=False):
        part = copy.deepcopy(state)
        list(itertools.islice(train(part, settings, corpus, valid, Workspace()), int(stop)))
        save_training(folder.last, part, saved)
        resumed, loaded = load_saved(folder.last)
        assert loaded.origin == origin
        list(train(resumed, settings, corpus, valid, Workspace()))
        assert weights(resumed) == weights(whole)
        assert untimed(resumed.history) == untimed(whole.history)


@pytest.mark.parametrize("windows", [1, 3, 16, 17, 40])
def test_weight_decay_shrinks_the_tables_of_words(windows):
    """After any number of windows U and V have lost exp(-sum of rate * decay), and nothing else has changed.

    The rate is the tiniest, so that the steps themselves change nothing, and the decay makes up for it.
    """
    with_decay = TrainingSettings(bptt=3, batch_size=2, lr=1e-30, weight_decay=2e27, eval_every=windows)
    state, corpus, valid, _ = begin(with_decay)
    before = copy.deepcopy(state.model.parameters)
    events = train(state, with_decay, corpus, valid, Workspace())
    predictions = 0
    for event in events:
        if isinstance(event, Evaluation):
            break
        predictions += event.predictions
    assert state.steps == windows
    assert state.optimizer.owed == 0
    kept = math.exp(-predictions * 1e-30 * 2e27)
    for name, values in before.items():
        expected = values * kept if name in ("U", "V") else values
        np.testing.assert_allclose(state.model.parameters[name], expected, rtol=1e-6, atol=1e-20, err_msg=name)


def test_strong_weight_decay_leaves_nothing_of_the_tables():
    """Two epochs of a few windows with a decay of a million end with U and V at zero, not with what they began with."""
    settings = TrainingSettings(bptt=35, batch_size=16, epochs=2, weight_decay=1e6)
    state, corpus, valid, _ = begin(settings)
    list(train(state, settings, corpus, valid, Workspace()))
    assert state.steps < 16
    assert not state.model.parameters["U"].any()
    assert not state.model.parameters["V"].any()
    assert state.model.parameters["W1"].any()


def test_the_average_of_weights_is_what_is_evaluated():
    """Of every sixteenth step's weights, the k-th with a weight as (k + 4) over 4: best, and in use, if asked for."""
    settings = TrainingSettings(bptt=6, batch_size=4, epochs=4, average=True, weight_decay=0.01)
    state, corpus, valid, _ = begin(settings)
    met, means = [], []
    for event in train(state, settings, corpus, valid, Workspace()):
        if isinstance(event, Progress) and state.steps % 16 == 0:
            met.append({name: value.astype(float) for name, value in state.model.parameters.items()})
        if isinstance(event, Evaluation) and met:
            weights = np.array([math.comb(k + 4, 4) for k in range(len(met))])
            wanted = {
                name: sum(w * one[name] for w, one in zip(weights, met, strict=True)) / weights.sum() for name in met[0]
            }
            for name, value in state.result.parameters.items():
                np.testing.assert_allclose(value, wanted[name], rtol=1e-5, atol=1e-6)
            means.append(perplexity(state.result, valid, Workspace()).perplexity)
            assert event.record.valid_perplexity == means[-1]
            assert means[-1] != perplexity(state.model, valid, Workspace()).perplexity
    assert len(met) > 4
    assert means


def test_every_epoch_has_an_order_of_its_own():
    """The sentences come in another order in each epoch, which the seed decides and a resumed run meets again."""

    def orders(seed):
        settings = TrainingSettings(bptt=0, batch_size=1, epochs=3, seed=seed, lr=1e-30)
        state, corpus, valid, _ = begin(settings)
        losses = {1: [], 2: [], 3: []}
        before = 0.0
        for event in train(state, settings, corpus, valid, Workspace()):
            if isinstance(event, Progress):
                losses[event.epoch].append(round(state.loss_sum - before, 3))
                before = state.loss_sum
            else:
                before = 0.0
        return list(losses.values())

    first, second, third = orders(1)
    assert sorted(first) == sorted(second) == sorted(third)  # nothing is learned at this rate: the same losses
    assert first != second != third != first
    assert orders(1) == [first, second, third]
    assert orders(2)[0] != first


def test_settings_that_contradict_each_other_are_refused_when_they_are_made():
    """Momentum goes with SGD alone, and no text need be read to say so."""
    with pytest.raises(SettingsError, match="--momentum goes with --optimizer sgd and has no effect on adam"):
        TrainingSettings(optimizer="adam", momentum=0.5)


def test_the_learning_rate_falls_and_patience_ends():
    """After the first epoch without enough improvement the rate is divided each epoch; patience counts such epochs."""
    settings = TrainingSettings(bptt=6, batch_size=4, epochs=50, min_improvement=0.9, patience=3, lr_decay=2.0)
    state, corpus, valid, _ = begin(settings)
    list(train(state, settings, corpus, valid, Workspace()))
    rates = [record.learning_rate for record in state.history]
    first = ELMAN_RATE
    assert rates == [first, first, first / 2, first / 4]  # the first epoch has nothing to be compared with
    assert "has not improved" in finished(state, settings)
    assert finished(state, TrainingSettings(epochs=50, min_improvement=0.9, patience=5)) is None


def test_the_learning_rate_falls_from_an_epoch_on():
    """From the end of that epoch on it is divided, and not before, however much an epoch has improved."""
    for demanded in (0.0, 0.9):
        settings = TrainingSettings(
            bptt=6, batch_size=4, epochs=5, min_improvement=demanded, patience=9, decay_from=3, lr_decay=2.0, lr=0.001
        )
        state, corpus, valid, _ = begin(settings)
        list(train(state, settings, corpus, valid, Workspace()))
        assert [record.learning_rate for record in state.history] == [0.001, 0.001, 0.001, 0.0005, 0.00025]


def test_an_average_that_has_not_moved_is_no_poor_epoch():
    """Where an epoch has fewer windows than the average has steps from one to the next, patience waits for it."""
    settings = TrainingSettings(bptt=6, batch_size=20, epochs=9, patience=2, average=True, lr=1e-4, lr_decay=1)
    state, corpus, valid, _ = begin(settings)
    list(train(state, settings, corpus, valid, Workspace()))
    values = [record.valid_perplexity for record in state.history]
    assert len(values) == 9
    assert len(set(values)) < 9
    waiting = TrainingSettings(bptt=6, batch_size=20, epochs=9, patience=2, average=True, lr=1e-4, min_improvement=1e-6)
    state, corpus, valid, _ = begin(waiting)
    list(train(state, waiting, corpus, valid, Workspace()))
    assert [record.valid_perplexity for record in state.history] == values
    assert not state.decaying  # nor has the rate begun to fall


def test_patience_begins_with_the_epoch_from_which_the_rate_falls():
    """A rate that stays too high improves nothing until it falls."""
    settings = TrainingSettings(bptt=6, batch_size=4, epochs=9, min_improvement=0.9, patience=2, decay_from=4)
    state, corpus, valid, _ = begin(settings)
    list(train(state, settings, corpus, valid, Workspace()))
    assert len(state.history) == 5
    assert finished(state, settings) is not None


def test_epochs_end():
    """The last epoch is the one asked for, and one more goes on from there."""
    settings = TrainingSettings(bptt=6, batch_size=4, epochs=2)
    state, corpus, valid, _ = begin(settings)
    list(train(state, settings, corpus, valid, Workspace()))
    assert [record.epoch for record in state.history] == [1, 2]
    assert finished(state, settings) == "2 epochs done"
    list(train(state, TrainingSettings(bptt=6, batch_size=4, epochs=3), corpus, valid, Workspace()))
    assert [record.epoch for record in state.history] == [1, 2, 3]


@pytest.mark.parametrize("how", [{}, {"momentum": 0.5}, {"optimizer": "adam"}], ids=str)
def test_divergence_is_an_error_that_leaves_the_state_alone(how):
    """A rate far too high stops training with the remedy, before the step that would have spoiled the parameters.

    Parameters, the optimizer's memory and the number of steps are those after the last window that was told.
    """
    rate = {"lr": 500.0, "rate_power": 0.0, "clip": 0.0}
    settings = TrainingSettings(bptt=6, batch_size=4, epochs=30, **rate, **how)
    state, corpus, valid, _ = begin(settings)
    kept, steps = weights(state), 0
    events = train(state, settings, corpus, valid, Workspace())

    def follow():
        nonlocal kept, steps
        for _ in events:
            kept, steps = weights(state), state.steps

    with pytest.raises(
        DivergenceError, match=r"diverged in epoch .*: lower --lr \(now .*\) or --batch-size .*"
    ) as error:
        follow()
    assert str(error.value).endswith("--batch-size (now 4), or give --clip 5, and train again")
    assert weights(state) == kept
    assert state.steps == steps
    assert all(np.isfinite(values).all() for values in state.model.parameters.values())


@pytest.mark.parametrize(("factor", "beyond", "diverged"), [(9, 1, False), (11, 1, True), (11, -1, False)])
def test_tenfold_perplexity_is_divergence(factor, beyond, diverged):
    """The mean loss over many windows may rise by less than a factor of ten in perplexity, and not by more.

    A model that is trained on may know its first window well: one that is better than an even guess has not diverged.
    """
    settings = TrainingSettings(bptt=6, batch_size=4, epochs=1)
    state, corpus, valid, _ = begin(settings)
    loss = float(np.log(len(state.model.parameters["c"])))
    state.recent_loss = loss + beyond
    state.first_loss = state.recent_loss - math.log(factor)
    state.model.parameters["V"][...] = state.model.parameters["c"][...] = 0  # each word is as likely as any other
    if diverged:
        with pytest.raises(DivergenceError, match="to over ten times that"):
            next(train(state, settings, corpus, valid, Workspace()))
    else:
        next(train(state, settings, corpus, valid, Workspace()))


def test_a_loss_that_is_no_number_is_divergence():
    """NaN among the parameters is told in a sentence, not carried on."""
    settings = TrainingSettings(bptt=6, batch_size=4, epochs=1)
    state, corpus, valid, _ = begin(settings)
    state.model.parameters["W1"][0, 0] = np.nan
    with pytest.raises(DivergenceError, match="no longer a number"):
        list(train(state, settings, corpus, valid, Workspace()))
    assert state.history == []
    state.check()  # it can be saved, and read again
    assert state.first_loss is None


def test_the_masks_of_a_window_do_not_come_from_the_order_of_its_epoch():
    """Each window has random numbers of its own, the first one too."""
    settings = TrainingSettings(bptt=6, batch_size=4, dropout=0.5, seed=3)
    state, corpus, *_ = begin(settings)
    state.epoch, drawn = 1, []
    for state.window in range(3):
        masks = _window_masks(state, settings, 6, epoch_windows(state, settings, corpus))
        drawn.append(masks["rows"].tobytes())
    order = draw_masks(state.model.settings, 4, dropout(settings), np.random.default_rng([3, 1]), np.float32)
    assert len({*drawn, order["rows"].tobytes()}) == 4


def test_clipping_bounds_the_step():
    """With momentum 0 and equal rates, no step is longer than rate times positions times the clipping norm."""
    settings = TrainingSettings(bptt=6, batch_size=4, epochs=1, clip=0.01, rate_power=0.0, lr=1.0)
    state, corpus, valid, _ = begin(settings)
    before = copy.deepcopy(state.model.parameters)
    next(train(state, settings, corpus, valid, Workspace()))
    moved = sum(np.sum((state.model.parameters[name] - before[name]) ** 2.0) for name in before)
    assert np.sqrt(moved) == pytest.approx(0.01 * 6 * 4, rel=1e-3)


@pytest.mark.parametrize(
    ("trained", "valid", "expected"),
    [((9, 8), (7, 7.1), True), ((9, 9.1), (7, 7.1), False), ((9, 8), (7, 7.01), False), ((9,), (7,), False)],
)
def test_overfitting_is_a_fall_in_training_and_a_rise_in_validation(trained, valid, expected):
    """It is told from one epoch to the next; what was evaluated within them has no part in it."""
    history = []
    for epoch, (one, other) in enumerate(zip(trained, valid, strict=True), 1):
        history += [Record(epoch, 1, 5, None, 99, None, 0.1, 1, 1), Record(epoch, 2, 5, one, other, None, 0.1, 1, 1)]
    assert overfitting(history) == expected


def test_sentences_forget_the_state_as_often_as_is_asked():
    """None, half and all of them are three different trainings."""
    trained = {}
    for share in (0.0, 0.5, 1.0):
        settings = TrainingSettings(bptt=6, batch_size=4, epochs=1, dropout_state=share)
        state, corpus, valid, _ = begin(settings, carry_state=True)
        list(train(state, settings, corpus, valid, Workspace()))
        trained[share] = state.loss_sum
    assert len(set(trained.values())) == 3
