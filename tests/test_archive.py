"""Files that somebody else has written, or altered: what they claim is compared with what it must be, then believed."""

import json
import os
import subprocess
import sys
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rnnlm.archive import reading
from rnnlm.checkpoint import ModelFolder, load_model, load_saved
from rnnlm.errors import ModelError
from rnnlm.run import Listener, begin, follow, resume, working
from rnnlm.settings import NetworkSettings, RunSettings, TextSettings, TrainingSettings


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the folder of a model in the middle of its second epoch."""
    folder = tmp_path_factory.mktemp("trained")
    text = folder / "text.txt"
    text.write_text("".join(f"the {noun} {verb}\n" for noun in ("cat", "dog", "bird") for verb in ("runs", "sits")) * 9)
    settings = RunSettings(
        (str(text),),
        text=TextSettings(pretokenized=True),
        network=NetworkSettings(6, clusters=2),
        training=TrainingSettings(bptt=5, batch_size=4, epochs=3, optimizer="adam"),
    )
    model = ModelFolder(folder / "model")
    with working(1) as work, model.held():
        run = begin(model, settings)
        list(
            follow(run, model, work, listener=Listener(stopping=lambda: run.state.epoch == 2 and run.state.window == 3))
        )
    return folder


@pytest.fixture
def model(trained, tmp_path):
    """Return a copy of that folder of a model, which may be altered."""
    copy = tmp_path / "model"
    copy.mkdir()
    for path in (trained / "model").glob("*.*"):
        (copy / path.name).write_bytes(path.read_bytes())
    return ModelFolder(copy)


def alter(path, change=None, **arrays):
    """Write a file again with other arrays (None: without them), and with JSON that `change` has altered in place."""
    stored = {**dict(np.load(path)), **arrays}
    about = json.loads(stored["rnnlm"].tobytes())
    if change:
        change(about)
    stored["rnnlm"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    np.savez(path, **{name: array for name, array in stored.items() if array is not None})


def refused(path, message):
    """Say whether reading is refused with this message, which names the file, and leaves it as it is."""
    before = path.read_bytes()
    with pytest.raises(ModelError, match=message) as caught:
        load_saved(path)
    assert str(caught.value).startswith(f"{path}: ")
    return path.read_bytes() == before


def test_an_unaltered_file_is_read(model):
    """Written again as it was, a file is read: so what the tests below find is what they alter."""
    alter(model.last)
    state, _ = load_saved(model.last)
    assert (state.epoch, state.window) == (2, 3)


DEEP = json.loads("[" * 600 + "]" * 600)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("model.cutoffs", value) for value in ([5, 3], [1, 1], [-1, 5], [1.5, 2], [0, 0], [4, 99], 3, None)),
        *(("model.hidden", value) for value in (8.0, 6.0, "6", True, None, 0, -1, 10**30)),
        *(("model.words", value) for value in (500.0, 0, "x")),
        *(("model.truncate", value) for value in ("x", -1, 1.5)),
        *(("model.carry_state", value) for value in ("no", 0, None)),
        *(("model.layers", value) for value in (0, 1.0, 101, None)),
        *(("model.embedding", value) for value in (0, "6", 6.0, 100_001)),
        *(("model.tied", value) for value in (1, None, "yes")),
        *(("model.cell", value) for value in (None, 3)),
        ("origin.settings.network.cell", "rnn"),
        ("origin.settings.network.tied", 0),
        ("origin.settings.training.dropout_hidden", 1),
        *(("tokenizer.settings.encoding", value) for value in (5, None, "a\0b")),
        ("tokenizer.settings.lowercase", "yes"),
        ("tokenizer.punkt", {}),
        *(("state.epoch", value) for value in ("a", -1, 1.5, 0)),
        *(("state.window", value) for value in (-5, "x", 1.0)),
        *(("state.learning_rate", value) for value in ("x", float("nan"), -1, None)),
        *(("state.poor_epochs", value) for value in ("q", -1)),
        *(("state.history", value) for value in (5, [{}], DEEP)),
        *(("state.best_perplexity", value) for value in ("x", None)),
        *(("state.seconds", value) for value in ("x", float("inf"), -1)),
        *(("state.steps", value) for value in (-1, None)),
        *(("owed", value) for value in ("x", float("nan"), -0.5, None)),
        *(("origin.settings.training.bptt", value) for value in ("zzz", -1)),
        ("origin.settings.training.optimizer", "foo"),
        ("origin.settings.training.lr", None),
        ("origin.settings.corpus", []),
        ("origin.settings", None),
        ("origin.history", [1]),
        ("origin.coverage", DEEP),
        ("origin.run", 5),
        ("version", float("nan")),
        ("version", "3"),
    ],
)
def test_a_wrong_value_is_named_by_its_field(model, field, value):
    """A value of another type, or beyond its range, is refused in a sentence with the file and the field."""

    def change(about):
        *path, name = field.split(".")
        for key in path:
            about = about[key]
        about[name] = value

    alter(model.last, change)
    messages = {"lr": "learning rate", "corpus": "there is no text to train on"}
    name = field.rpartition(".")[2]
    assert refused(model.last, messages.get(name, name))


@pytest.mark.parametrize("place", ["", "model", "state", "tokenizer", "origin", "origin.settings.network"])
def test_no_field_is_missing_or_unknown(model, place):
    """A field that is missing, and one that does not belong, are named."""

    def at(about):
        for key in filter(None, place.split(".")):
            about = about[key]
        return about

    whole = model.last.read_bytes()
    first = sorted(at(json.loads(np.load(model.last)["rnnlm"].tobytes())))[-1]
    alter(model.last, lambda about: at(about).pop(first))
    assert refused(model.last, "is damaged|is not a model|was written")
    model.last.write_bytes(whole)
    alter(model.last, lambda about: at(about).update(colour=1))
    assert refused(model.last, "colour")


ENTRIES = ["parameters/U", "parameters/b1", "optimizer/mean/V", "optimizer/square/W1", "states"]
CHANGES = {
    "float64": lambda a: a.astype(np.float64),
    "float64 beyond float32": lambda a: a.astype(np.float64) * 1e300,
    "float16": lambda a: a.astype(np.float16),
    "longdouble": lambda a: a.astype(np.longdouble),
    "int": lambda a: a.astype(np.int32),
    "big-endian": lambda a: a.astype(">f4"),
    "complex": lambda a: a.astype(np.complex64),
    "scalar": lambda a: a.reshape(-1)[0].copy(),
    "one row": lambda a: a[:1] if len(a) > 1 else a[..., :1],
    "flat": lambda a: a.reshape(-1, 1, 1),
    "empty": lambda a: a[:0],
    "columns first": lambda a: np.asfortranarray(np.stack([a, a])),
    "infinite": lambda a: np.where(np.arange(a.size).reshape(a.shape) == 0, np.float32(np.inf), a),
    "not a number": lambda a: a * np.float32(np.nan),
    "text": lambda a: a.astype("U8"),
    "missing": lambda a: None,
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("change", CHANGES)
def test_arrays_are_taken_as_they_must_be_or_not_at_all(model, entry, change):
    """Another type, another shape or a number that is not finite is refused; nothing is cast or broadcast."""
    alter(model.last, **{entry: CHANGES[change](np.load(model.last)[entry])})
    assert refused(model.last, f"its entry {entry} (is|has)")


@pytest.mark.parametrize(
    ("entry", "change", "message"),
    [
        ("states", lambda a: a + np.float32(1e38), "a number that no elman cell gives"),
        ("states", lambda a: a * 0 + np.float32(1.1), "a number that no elman cell gives"),
        ("optimizer/square/U", lambda a: a - 1, "a square below zero"),
        ("vocabulary/counts", lambda a: -a, "the stored vocabulary is damaged"),
        ("vocabulary/counts", lambda a: a * 0 + np.arange(len(a)), "the stored vocabulary is damaged"),
        ("vocabulary/counts", lambda a: a.astype(np.float64) * np.nan, "its entry vocabulary/counts is float64"),
        ("vocabulary/words", lambda a: np.where(a == ord("t"), np.uint8(27), a), "the stored vocabulary is damaged"),
        ("vocabulary/words", lambda a: np.where(a == ord("t"), np.uint8(7), a), "the stored vocabulary is damaged"),
        ("vocabulary/words", lambda a: a[:-1], "the stored vocabulary is damaged"),
        ("extra", lambda _: np.zeros(3), "its entry 'extra' does not belong"),
    ],
)
def test_numbers_must_be_possible(model, entry, change, message):
    """States, squares, counts and words that training cannot have made are refused, and an entry too many."""
    arrays = dict(np.load(model.last))
    alter(model.last, **{entry: change(arrays.get(entry))})
    if message.startswith("the stored") and entry.endswith("words") and change(np.array([1, 2])).size == 1:
        message = "stored vocabulary|size"
    assert refused(model.last, message)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ({"cell": "gru", "embedding": 18}, r"its entry parameters/U is float32 of shape \(\d+, 6\)"),
        ({"layers": 2}, "its entry parameters/X2 is missing"),
        ({"layers": 100, "hidden": 100_000}, "its entry parameters/U is float32 of shape"),
        ({"layers": 100, "hidden": 100_000, "tied": True, "cell": "lstm"}, "its entry parameters/X1 is missing"),
        ({"embedding": 5}, r"its entry parameters/U is float32 of shape \(\d+, 6\)"),
        ({"tied": True}, "its entry parameters/X1 is missing"),
    ],
)
def test_a_kind_that_the_arrays_are_not_of_costs_no_memory(model, kind, message):
    """Cells, layers and sizes that the entries do not have are an error, and cost no memory."""
    alter(model.last, lambda about: about["model"].update(kind))
    tracemalloc.start()
    try:
        assert refused(model.last, message)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_a_cell_that_there_is_not(model):
    """A cell that this rnnlm lacks is an error that asks for an upgrade."""
    alter(model.last, lambda about: about["model"].update(cell="rnn"))
    assert refused(model.last, "has cells of the kind 'rnn', which this rnnlm lacks; upgrade rnnlm")


def test_a_tied_table_has_one_size(model):
    """A tied model of one layer whose D is not H is an error that names the field; of several, the last has D units."""
    alter(model.last, lambda about: about["model"].update(tied=True, embedding=5))
    assert refused(model.last, r"model\.embedding is 5, where the 6 units of one table of words must stand")


@pytest.mark.parametrize(
    ("cell", "value", "sound"),
    [("relu", 1e30, True), ("relu", -1e-9, False), ("elman", -1.1, False), ("sigmoid", -0.1, False)],
)
def test_states_are_those_that_the_cell_gives(model, cell, value, sound):
    """A state beyond what its cell gives is an error; c of an LSTM may be of any size, s of `relu` if not negative."""
    states = np.full_like(np.load(model.last)["states"], value)
    alter(model.last, lambda about: about["model"].update(cell=cell), states=states)
    if sound:
        assert load_saved(model.last)[0].states.max() == np.float32(value)
    else:
        assert refused(model.last, f"a number that no {cell} cell gives")


def test_all_that_is_read_is_no_more_than_the_file(model):
    """Entries that together are longer than the file are an error: no byte of it counts twice."""
    with reading(model.best) as archive, pytest.raises(ValueError, match="is longer than the file"):
        [archive.array("vocabulary/words", np.uint8, None, 2**20) for _ in range(100)]


def zipped(path, extra, compression):
    """Add an entry of zeros to an archive."""
    with zipfile.ZipFile(path, "a", compression) as archive, archive.open(extra, "w", force_zip64=True) as entry:
        for _ in range(100):
            entry.write(bytes(2**20))


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_what_is_packed_is_not_unpacked(model, compression):
    """Some kilobytes that unpack to 100 MB cost no memory: they are refused by what their list of entries says."""
    zipped(model.best, "zeros.npy", compression)
    code = (
        "import resource, sys; from rnnlm.checkpoint import load_model; from rnnlm.errors import ModelError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: load_model(sys.argv[1])\n"
        "except ModelError as error: print(error)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    command = [sys.executable, "-c", code, model.best]
    message, growth = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert "does not belong" in message
    assert int(growth) < 50
    arrays = dict(np.load(model.last))
    np.savez_compressed(model.last, **arrays)
    assert refused(model.last, "its entry rnnlm is compressed")


def test_a_list_of_entries_is_not_read_without_end(model):
    """An archive of a hundred thousand entries is refused before they are counted."""
    with zipfile.ZipFile(model.best, "a") as archive:
        for number in range(20_000):
            archive.writestr(f"{number:0>60}", b"")
    assert refused(model.best, "list of entries is too long")


def test_two_entries_of_one_name_are_refused(model):
    """Which of them would be read is nobody's to guess."""
    with zipfile.ZipFile(model.best, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("parameters/U.npy", b"")
    assert refused(model.best, "two entries of one name")


def test_only_plain_files_are_read(model):
    """A pipe in a file's place is not waited for; a folder and a missing file are told apart."""
    model.best.unlink()
    os.mkfifo(model.best)
    with pytest.raises(ModelError, match=r"best\.npz: cannot be read \(not a plain file\)"):
        load_model(model.path)
    model.best.unlink()
    model.best.mkdir()
    with pytest.raises(ModelError, match=r"best\.npz: cannot be read \(is a directory\)"):
        load_model(model.path)


@pytest.mark.parametrize("path", [None, 5, b"model\0", "a\0b", ""])
def test_what_is_no_path(path):
    """Whatever is given in the place of a path, one sentence answers."""
    with pytest.raises(ModelError, match=r"no path|no such path|no model"):
        load_model(path)


def test_files_of_two_runs_are_not_mixed(trained, model):
    """Another run's file beside those of a run is refused before anything is written, whichever it is."""
    text = trained / "text.txt"
    other = ModelFolder(model.path.parent / "other")
    settings = load_model(trained / "model").origin.settings
    with working(1) as work, other.held():
        list(follow(begin(other, replace(settings, corpus=(str(text),))), other, work))
    for name in ("best.npz", "last.npz", "history.jsonl"):
        mixed = ModelFolder(model.path.parent / f"mixed {name}")
        mixed.path.mkdir()
        for path in (*model.path.glob("*.npz"), model.history):
            (mixed.path / path.name).write_bytes(path.read_bytes())
        (mixed.path / name).write_bytes((other.path / name).read_bytes())
        before = {path.name: path.read_bytes() for path in mixed.path.iterdir()}
        with pytest.raises(ModelError, match=r"is of another run than last\.npz, and going on would overwrite it"):
            resume(mixed)
        assert {path.name: path.read_bytes() for path in mixed.path.iterdir()} == before


def test_a_best_model_that_is_missing_is_asked_for(trained, model):
    """A run that has been evaluated does not go on without its best model."""
    model.best.unlink()
    with pytest.raises(ModelError, match=r"best\.npz: is missing"):
        resume(model)


def test_a_training_must_fit_its_text(trained, model):
    """A window that the text does not have is refused when the text is known."""
    alter(model.last, lambda about: about["state"].update(window=10**9))
    (model.path / "encoded-train").symlink_to(trained / "model" / "encoded-train")
    for name in ("encoded-train", "encoded-valid"):
        place = model.path / name
        place.unlink(missing_ok=True)
        if (trained / "model" / name).exists():
            place.mkdir()
            for path in (trained / "model" / name).iterdir():
                (place / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ModelError, match="does not fit its text"):
        resume(model)


def test_history_is_read_as_it_was_written(model):
    """Records come back from history.jsonl; those of another run are none, and damage is named with its line."""
    state, saved = load_saved(model.last)
    assert model.read_history(saved.origin.run) == state.history
    assert model.read_history("another") == []
    whole = model.history.read_bytes()
    model.history.write_bytes(whole + whole.replace(saved.origin.run.encode(), b"another"))
    assert model.read_history(saved.origin.run) == []
    model.history.write_bytes(whole + f'{{"run": "{saved.origin.run}"}}\n'.encode())
    with pytest.raises(ModelError, match=r"history\.jsonl: is damaged: line 2"):
        model.read_history(saved.origin.run)
    model.history.write_bytes(b"\xff\n")
    with pytest.raises(ModelError, match=r"history\.jsonl: is damaged"):
        model.read_history(saved.origin.run)


def test_names_are_paths(monkeypatch, tmp_path, model):
    """A folder that was named from here is found from elsewhere."""
    monkeypatch.chdir(model.path.parent)
    folder = ModelFolder("model")
    monkeypatch.chdir("/")
    assert folder.best.exists()
    assert folder.name == Path("model")
