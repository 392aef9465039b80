"""Files of a model: written whole, read exactly, and refused in one sentence when they are not what they should be."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rnnlm import checkpoint
from rnnlm.checkpoint import (
    STATES,
    ModelFolder,
    Origin,
    SavedModel,
    load_model,
    load_training,
    save_model,
    save_training,
)
from rnnlm.corpus import Coverage
from rnnlm.errors import ModelError
from rnnlm.model import CELLS, LanguageModel, ModelSettings, Workspace, initialize
from rnnlm.settings import RunSettings, TextSettings, TrainingSettings, VocabularySettings
from rnnlm.text import Tokenizer
from rnnlm.training import AVERAGE_STEPS, Record, TrainingState, make_optimizer
from rnnlm.vocabulary import Vocabulary

TRAINING = TrainingSettings(batch_size=4, lr=0.00075, rate_power=0.5)  # nothing is left open in a file


@pytest.fixture
def vocabulary():
    """Return a few words, one of them not ASCII."""
    return Vocabulary.from_counts({"a": 5, "über": 3, "c": 3}, sentences=4)


@pytest.fixture
def model(vocabulary):
    """Return a small model."""
    settings = ModelSettings(len(vocabulary), hidden=3, truncate=2)
    return initialize(settings, vocabulary.counts, np.random.default_rng(1))


@pytest.fixture
def origin():
    """Return where a model may come from, with settings of every kind."""
    words = VocabularySettings(vocab_size=None, min_count=2, vocab=Path("words.txt"))
    settings = RunSettings(("a.txt", "-"), ("b.txt",), 0.1, None, TextSettings(lowercase=True), words)
    settings = replace(settings, training=TRAINING, chosen=("lr",))
    coverage = Coverage(sentences=4, words=11, types=3, vocabulary=5, unknown=0)
    record = Record(3, 7, 13.5, None, 12.5, None, 0.00075, 1.5, 1000)
    return Origin("a run", None, settings, ("one", "two"), coverage, 3, 7, 12.5, (record,))


@pytest.fixture
def saved(model, vocabulary, origin):
    """Return a small model with all that belongs to it."""
    return SavedModel(model, vocabulary, Tokenizer(), origin)


@pytest.fixture
def best(tmp_path, saved):
    """Return the path of a saved model."""
    path = tmp_path / "best.npz"
    save_model(path, saved)
    return path


def test_a_model_is_read_as_it_was_written(best, model, vocabulary, origin):
    """Parameters, settings, vocabulary, tokenizer and origin come back, from the file and from its folder."""
    for path in (best, best.parent, str(best)):
        saved = load_model(path)
        assert saved.model.settings == model.settings
        assert {name: array.tobytes() for name, array in saved.model.parameters.items()} == {
            name: array.tobytes() for name, array in model.parameters.items()
        }
        assert saved.vocabulary == vocabulary
        assert saved.tokenizer == Tokenizer()
        assert saved.origin == origin


KINDS = [
    {"cell": cell, "layers": 2, **sizes}
    for cell in CELLS
    for sizes in ({"tied": True, "cutoffs": (2,)}, {"embedding": 5})
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_models_of_every_kind_are_read_as_they_were_written(tmp_path, saved, vocabulary, kind):
    """Models of every cell, of several layers, tied or not, are read just as they were written.

    States are as large as they may be.
    """
    settings = ModelSettings(len(vocabulary), hidden=3, carry_state=True, **kind)
    model = initialize(settings, vocabulary.counts, np.random.default_rng(1))
    state = TrainingState.begin(model, TRAINING, vocabulary.counts)
    state.states, state.window, state.predictions = model.start(4), 1, 9
    for number, (_, high) in enumerate(STATES[settings.cell]):
        state.states[:, number] = min(high, 1e38)
    path = tmp_path / "new.npz"
    save_training(path, state, replace(saved, model=model))
    back, back_saved = load_training(ModelFolder(tmp_path))
    assert back_saved.model.settings == settings
    assert ("U" in back_saved.model.parameters) != settings.tied
    for name, array in model.parameters.items():
        assert back_saved.model.parameters[name].tobytes() == array.tobytes(), name
    assert back.states.tobytes() == state.states.tobytes()


def test_states_are_those_of_the_cells():
    """There are limits for each state of each cell; a long window of large numbers stays within them."""
    assert {name: len(limits) for name, limits in STATES.items()} == {
        name: len(cell.states) for name, cell in CELLS.items()
    }
    for cell, limits in STATES.items():
        model = initialize(ModelSettings(9, 4, cell, carry_state=True), np.ones(9), np.random.default_rng(3))
        for array in model.parameters.values():
            array *= 2 if cell == "relu" else 100
        words = np.random.default_rng(4).integers(0, 9, (200, 5))
        (_, states), _ = model.read(words, model.start(5), Workspace())
        for number, (low, high) in enumerate(limits):
            assert low <= states[:, number].min() <= states[:, number].max() <= high, cell


def test_the_same_model_gives_the_same_bytes(best, saved, tmp_path):
    """A file depends on what it holds alone, not on the clock."""
    again = tmp_path / "again.npz"
    save_model(again, saved)
    assert again.read_bytes() == best.read_bytes()


def test_no_byte_of_a_file_can_be_lost_unnoticed(best):
    """Cut short anywhere, a file is refused in a sentence that names it."""
    whole = best.read_bytes()
    for length in sorted({*range(0, len(whole), 97), len(whole) - 1}):
        best.write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"best\.npz: (is damaged|is not a model)"):
            load_model(best)


def test_damage_is_found_or_harmless(best, model):
    """With any one byte changed, a file is refused, or still gives exactly the model that was saved."""
    whole = best.read_bytes()
    refused = 0
    for place in np.random.default_rng(1).choice(len(whole), 400, replace=False):
        best.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            saved = load_model(best)
        except ModelError:
            refused += 1
        else:
            assert set(saved.model.parameters) == set(model.parameters)
            for name, values in model.parameters.items():
                assert np.array_equal(saved.model.parameters[name], values), name
    assert refused > 200


def test_foreign_files_are_refused(tmp_path):
    """A text, a pickle, another program's npz, and a missing file are each named for what they are."""
    text = tmp_path / "text.npz"
    text.write_text("not a model")
    foreign = tmp_path / "foreign.npz"
    np.savez(foreign, weights=np.zeros(3))
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, rnnlm=np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for path, message in (
        (text, "is not a model of rnnlm"),
        (foreign, "is not a model of rnnlm"),
        (pickled, "is damaged"),
        (tmp_path / "missing.npz", "there is no model here"),
        (tmp_path, "holds no model"),
    ):
        with pytest.raises(ModelError, match=message):
            load_model(path)


@pytest.mark.parametrize(
    ("version", "message"), [(99, "newer rnnlm .* upgrade"), (1, "older rnnlm .* train the model")]
)
def test_another_format_is_refused(best, monkeypatch, saved, version, message):
    """A file of a later format asks for an upgrade, one of an earlier format for training; neither is guessed at."""
    monkeypatch.setattr(checkpoint, "VERSION", version)
    save_model(best, saved)
    monkeypatch.undo()
    with pytest.raises(ModelError, match=message):
        load_model(best)


def test_shapes_that_contradict_the_settings_are_damage(best, model, saved):
    """A parameter of another shape, one that is missing, or one too many is refused."""
    fewer = {name: value for name, value in model.parameters.items() if name != "W1"}
    other, more = {"U": model.parameters["U"][:-1]}, {"extra": np.zeros(2, np.float32)}
    for parameters in (fewer, {**model.parameters, **other}, {**model.parameters, **more}):
        save_model(best, replace(saved, model=LanguageModel(model.settings, parameters)))
        with pytest.raises(ModelError, match="is damaged"):
            load_model(best)


def test_a_failed_write_leaves_the_old_file(best, saved, monkeypatch):
    """When the disk is full, the model that was there is still there, whole, and nothing else is left behind."""
    before = best.read_bytes()

    def full(file, **_arrays):
        file.write(b"PK")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(ModelError, match=r"cannot be written .no space left on device"):
        save_model(best, saved)
    assert best.read_bytes() == before
    assert [path.name for path in best.parent.iterdir()] == ["best.npz"]


def test_nothing_is_pickled(best):
    """Every entry is an array of numbers, and the settings are JSON."""
    archive = np.load(io.BytesIO(best.read_bytes()), allow_pickle=False)
    assert all(archive[name].dtype.kind in "fiu" for name in archive.files)
    about = json.loads(archive["rnnlm"].tobytes())
    assert (about["format"], about["version"]) == ("rnnlm model", 4)


def test_training_is_read_as_it_was_written(tmp_path, model, vocabulary, saved):
    """The state of training comes back whole: velocity, states, numbers, infinities included."""
    settings = replace(TRAINING, momentum=0.5, seed=7, weight_decay=0.1)
    saved = replace(saved, origin=replace(saved.origin, settings=replace(saved.origin.settings, training=settings)))
    optimizer = make_optimizer(settings, model, vocabulary.counts)
    optimizer.memory["W1"]["velocity"] += 0.25
    optimizer.owed = 0.1 + 0.2
    states = np.full((1, 1, 4, 3), 0.5, np.float32)
    sums = {"loss_sum": 0.1 + 0.2, "predictions": 7}
    state = TrainingState(model, optimizer, 0.00075, epoch=2, window=9, states=states, **sums)
    folder = ModelFolder(tmp_path)
    save_training(folder.new, state, saved)
    back, back_saved = load_training(folder)
    assert back_saved.origin == saved.origin
    assert np.array_equal(back.states, states)
    assert np.array_equal(back.optimizer.memory["W1"]["velocity"], optimizer.memory["W1"]["velocity"])
    assert back.optimizer.owed == optimizer.owed
    assert repr(back.to_json()) == repr(state.to_json())


def test_averaged_weights_are_read_as_they_were_written(tmp_path, model, vocabulary, saved):
    """They are what is used, beside the weights that training goes on with; none of them may be missing."""
    training = replace(TRAINING, average=True)
    saved = replace(saved, origin=replace(saved.origin, settings=replace(saved.origin.settings, training=training)))
    state = TrainingState.begin(model, training, vocabulary.counts)
    state.steps, state.first_loss = AVERAGE_STEPS, 1.0
    state.average = {name: array + 1 for name, array in model.parameters.items()}
    folder = ModelFolder(tmp_path)
    save_training(folder.new, state, saved)
    back, used = load_training(folder)[0], load_model(folder.new).model
    for name, array in state.average.items():
        assert np.array_equal(back.average[name], array)
        assert np.array_equal(used.parameters[name], array)
        assert np.array_equal(back.model.parameters[name], model.parameters[name])
    arrays = dict(np.load(folder.new))
    np.savez(folder.new, **{name: array for name, array in arrays.items() if name != "average/V"})
    with pytest.raises(ModelError, match="its entry average/V is missing"):
        load_training(folder)


def test_a_latest_model_is_used_without_the_decay_that_it_owes(tmp_path, model, vocabulary, saved):
    """Read for use, `last.npz` gives the weights that an evaluation would have seen; read for training, those saved."""
    state = TrainingState.begin(model, saved.origin.settings.training, vocabulary.counts)
    state.optimizer.owed = 0.5
    folder = ModelFolder(tmp_path)
    save_training(folder.new, state, saved)
    used, resumed = load_model(folder.new).model.parameters, load_training(folder)[0].model.parameters
    for name, values in model.parameters.items():
        kept = np.exp(-0.5) if name in ("U", "V") else 1
        np.testing.assert_allclose(used[name], kept * values, rtol=1e-6, err_msg=name)
        assert np.array_equal(resumed[name], values)


@pytest.mark.parametrize("entry", ["optimizer/velocity/b1", "optimizer/velocity/U", "states"])
def test_nothing_of_a_training_is_broadcast(tmp_path, model, vocabulary, saved, entry):
    """Memory of the optimizer or states of a shape that is not the model's are damage, even if numpy would fit them."""
    training = replace(TRAINING, momentum=0.5)
    saved = replace(saved, origin=replace(saved.origin, settings=replace(saved.origin.settings, training=training)))
    state = TrainingState.begin(model, training, vocabulary.counts)
    state.states, state.window, state.predictions = model.start(4), 1, 9
    folder = ModelFolder(tmp_path)
    save_training(folder.new, state, saved)
    load_training(folder)
    arrays = dict(np.load(folder.new))
    np.savez(folder.new, **{**arrays, entry: arrays[entry][..., :1]})
    with pytest.raises(ModelError, match="is damaged"):
        load_training(folder)


def test_resuming_nothing_is_an_error(tmp_path):
    """A folder without last.npz has no training to go on with."""
    with pytest.raises(ModelError, match="no training to resume here; train without --resume"):
        load_training(ModelFolder(tmp_path))
