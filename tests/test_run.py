"""Trainings without the command line: what a Python user does."""

import itertools
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import threadpoolctl

from rnnlm import run as run_module
from rnnlm.checkpoint import ModelFolder, load_model, load_training
from rnnlm.errors import DivergenceError, ModelError, SettingsError
from rnnlm.files import temporary_name
from rnnlm.model import CELLS, stream_groups
from rnnlm.run import Listener, NoPicture, Stopped, begin, follow, resume, working
from rnnlm.settings import NetworkSettings, RunSettings, SaveEvery
from rnnlm.text import TextSettings
from rnnlm.training import Evaluation, Progress, TrainingSettings
from rnnlm.vocabulary import VocabularySettings

TRAINING = TrainingSettings(bptt=5, batch_size=2, epochs=3)


@pytest.fixture
def settings(tmp_path):
    """Return the settings of a small run."""
    text = tmp_path / "text.txt"
    text.write_text("".join(f"the {noun} {verb}\n" for noun in ("cat", "dog", "bird") for verb in ("runs", "sits")) * 9)
    return RunSettings(
        (str(text),), text=TextSettings(pretokenized=True), network=NetworkSettings(6), training=TRAINING
    )


def train(folder, settings, **how):
    """Train, and return the events."""
    with working(1) as work, folder.held():
        return list(follow(begin(folder, settings), folder, work, **how))


def test_a_training_is_a_stream_of_events(tmp_path, settings, capfd):
    """A run yields its windows, its evaluations and why it ended, saves its model, and prints nothing."""
    folder = ModelFolder(tmp_path / "model")
    events = train(folder, settings)
    assert events[-1] == Stopped("3 epochs done")
    assert sum(isinstance(event, Evaluation) for event in events) == 3
    assert {type(event) for event in events} >= {Progress, Evaluation, Stopped}
    saved = load_model(folder.path)
    records = [event.record for event in events if isinstance(event, Evaluation)]
    assert saved.origin.epoch == min(records, key=lambda record: record.valid_perplexity).epoch
    assert saved.origin.settings.training.lr == 0.001
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("pictures")
def test_a_training_draws_its_curve(tmp_path, settings):
    """Each evaluation draws it anew."""
    pytest.importorskip("matplotlib")
    folder, drawn = ModelFolder(tmp_path / "model"), set()
    with working(1) as work, folder.held():
        for event in follow(begin(folder, settings), folder, work):
            if isinstance(event, Evaluation):
                drawn.add(folder.curve.read_text())
    assert len(drawn) == 3
    assert all(picture.startswith("<?xml") for picture in drawn)


def test_a_run_stops_when_it_is_told_and_goes_on_from_there(tmp_path, settings):
    """Stopped after any window and resumed, a run ends with the same bytes as one that went through."""
    whole = ModelFolder(tmp_path / "whole")
    windows = sum(isinstance(event, Progress) for event in train(whole, settings))
    for stop in (1, 4, windows - 1):
        folder = ModelFolder(tmp_path / f"part {stop}")
        count = itertools.count(1)
        events = train(folder, settings, listener=Listener(stopping=lambda count=count, stop=stop: next(count) == stop))
        assert events[-1] == Stopped(None)
        with working(2) as work, folder.held():
            events = list(follow(resume(folder), folder, work, SaveEvery(windows=1)))
        assert events[-1] == Stopped("3 epochs done")
        for name in ("best.npz", "last.npz"):
            ours, theirs = (np.load(place.path / name) for place in (folder, whole))
            for entry in set(theirs.files) - {"rnnlm"}:
                assert ours[entry].tobytes() == theirs[entry].tobytes(), entry


DROPOUT = {"dropout": 0.2, "dropout_hidden": 0.3, "dropout_weights": 0.1}


def same(folder, other):
    """Say that two runs have come to the same: each array to the bit, and the history without its clocks."""
    for name in ("best.npz", "last.npz"):
        ours, theirs = (np.load(place.path / name) for place in (folder, other))
        assert set(ours.files) == set(theirs.files)
        for entry in set(theirs.files) - {"rnnlm"}:
            assert ours[entry].tobytes() == theirs[entry].tobytes(), (name, entry)
    histories = [
        [replace(record, seconds=0, words_per_second=0) for record in load_training(place)[0].history]
        for place in (folder, other)
    ]
    assert histories[0] == histories[1]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    "tables", [{"tied": True}, {"embedding": 5, "clusters": 2}, {"tied": True, "embedding": 4}], ids=str
)
@pytest.mark.parametrize("carry_state", [False, True])
@pytest.mark.parametrize("truncate", [None, 2])
def test_networks_of_every_kind_stop_and_go_on(tmp_path, settings, cell, tables, carry_state, truncate):
    """Two layers, tied or not, carried or not, either truncation: stopped in an epoch, resumed, the same to the bit."""
    network = NetworkSettings(6, cell, 2, **tables, bptt_truncate=truncate, carry_state=carry_state)
    settings = replace(
        settings, network=network, training=replace(TRAINING, epochs=2, momentum=0.5, average=carry_state, **DROPOUT)
    )
    whole, folder = ModelFolder(tmp_path / "whole"), ModelFolder(tmp_path / "part")
    train(whole, settings)
    for stop in (3, 25):
        count = itertools.count(1)
        listener = Listener(stopping=lambda count=count, stop=stop: next(count) == stop)
        if stop == 3:
            assert train(folder, settings, listener=listener)[-1] == Stopped(None)
        else:
            with working(1) as work, folder.held():
                assert list(follow(resume(folder), folder, work, listener=listener))[-1] == Stopped(None)
        assert load_training(folder)[0].states.shape[:2] == (2, len(CELLS[cell].states))
    with working(2) as work, folder.held():
        assert list(follow(resume(folder), folder, work))[-1] == Stopped("2 epochs done")
    same(folder, whole)


@pytest.mark.parametrize("cell", CELLS)
def test_threads_change_no_bit_of_a_training(tmp_path, settings, cell):
    """With streams and units enough to be shared, one thread and two come to the same."""
    network = NetworkSettings(250, cell, 2, tied=True)
    settings = replace(settings, network=network, training=replace(TRAINING, batch_size=64, epochs=1, **DROPOUT))
    folders = [ModelFolder(tmp_path / f"{threads}") for threads in (1, 2)]
    Path(settings.corpus[0]).write_text(Path(settings.corpus[0]).read_text() * 3)
    assert len(stream_groups(64, 250)) > 1
    for threads, folder in enumerate(folders, 1):
        with working(threads) as work, folder.held():
            list(follow(begin(folder, settings), folder, work))
    same(*folders)


def test_a_run_that_is_told_to_stop_as_it_ends_has_ended(tmp_path, settings):
    """There is nothing to resume after the last evaluation."""
    events = train(ModelFolder(tmp_path / "whole"), settings)
    asked, last = itertools.count(1), sum(isinstance(event, Progress | Evaluation) for event in events)
    listener = Listener(stopping=lambda: next(asked) == last)
    assert train(ModelFolder(tmp_path / "model"), settings, listener=listener)[-1] == Stopped("3 epochs done")


def test_what_may_change_on_resuming(tmp_path, settings):
    """Epochs and patience may be raised, nothing else changed; a finished run says so."""
    folder = ModelFolder(tmp_path / "model")
    train(folder, settings)
    trained = load_model(folder.path).origin.settings.training
    with working(1) as work, folder.held():
        with pytest.raises(SettingsError, match="training is finished, 3 epochs done"):
            resume(folder)
        with pytest.raises(SettingsError, match="3 epochs done; give --epochs a higher number"):
            resume(folder, given={"patience": 50})
        events = list(follow(resume(folder, given={"epochs": 4}), folder, work))
        assert events[-1] == Stopped("4 epochs done")
        assert resume(folder, given={"patience": 7, "epochs": 5}).settings == replace(trained, patience=7, epochs=5)
        with pytest.raises(SettingsError, match=r"--lr is 0\.1 here and was not given \(0\.001\)"):
            resume(folder, given={"lr": 0.1})
        with pytest.raises(SettingsError, match="--batch-size is 3 here and was 2"):
            resume(folder, given={"batch_size": 3})
        resume(folder, given={"epochs": 6, "batch_size": None})  # not given
        with pytest.raises(SettingsError, match="--vocab-size is None"):  # all words
            resume(folder, given={"epochs": 6, "vocab_size": None})
        with pytest.raises(SettingsError, match="--epochs is 0; it takes"):
            resume(folder, given={"epochs": 0})


@pytest.mark.parametrize(
    ("how", "every"), [(SaveEvery(windows=2), 2), (SaveEvery(seconds=0), 1), (SaveEvery(seconds=1e6), 10**6)], ids=str
)
def test_a_run_is_saved_as_often_as_asked(tmp_path, settings, how, every):
    """When a window is told, `last.npz` holds the latest window that a saving was due at, be it this one."""
    folder = ModelFolder(tmp_path / "model")
    with working(1) as work, folder.held():
        for event in follow(begin(folder, settings), folder, work, how):
            if isinstance(event, Evaluation):
                break
            assert load_training(folder)[0].window == event.window // every * every
        assert event.record.window > 4


def test_a_stop_is_saved_at_once(tmp_path, settings):
    """A run that is told to stop after its fourth window has saved that window, though no saving was due."""
    folder = ModelFolder(tmp_path / "model")
    count = itertools.count(1)
    assert train(folder, settings, listener=Listener(stopping=lambda: next(count) == 4))[-1] == Stopped(None)
    assert load_training(folder)[0].window == 4


def test_a_resumed_run_keeps_its_results(tmp_path, settings):
    """Resumed, a run mends its history and keeps its best."""
    folder = ModelFolder(tmp_path / "model")
    train(folder, replace(settings, training=replace(TRAINING, epochs=2)))
    history, best = folder.history.read_bytes(), folder.best.read_bytes()
    folder.history.write_bytes(history.splitlines(keepends=True)[0])  # a kill came before the second line
    with working(1) as work, folder.held():
        run = resume(folder, given={"epochs": 3})
        assert folder.history.read_bytes() == history
        list(follow(run, folder, work, listener=Listener(stopping=lambda: True)))
        assert folder.best.read_bytes() == best


@pytest.mark.parametrize(
    ("network", "dense"),
    [
        (NetworkSettings(6), 6 * 6),
        (NetworkSettings(6, embedding=5), 6 * 5 + 6 * 6),
        (NetworkSettings(6, "lstm", 2, tied=True), 2 * (24 * 6 + 24 * 6)),
        (NetworkSettings(6, "gru", 2, embedding=5), 18 * 5 + 18 * 6 + 2 * 18 * 6),
    ],
)
def test_clusters_are_chosen_beside_the_cost_of_the_recurrence(tmp_path, settings, network, dense, monkeypatch):
    """The matrices of all layers are counted, and neither the tables of words nor biases."""
    asked = []
    monkeypatch.setattr(run_module, "choose_cutoffs", lambda *arguments: asked.append(arguments) or (3,))
    saved = begin(ModelFolder(tmp_path / "model"), replace(settings, network=network)).saved
    assert saved.model.settings.cutoffs == (3,)
    assert [arguments[-1] for arguments in asked] == [dense]


def test_blas_has_one_thread_while_a_workspace_shares_the_work():
    """Inside `working`, each BLAS that is loaded is held to one thread, and let go afterwards."""

    def threads():
        return [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]

    if not threads():
        pytest.skip("numpy was built with a BLAS that has no such limit")
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        with working(2) as work:
            assert work.threads == 2
            assert set(threads()) == {1}
        assert set(threads()) == {2}


def test_files_are_found_again_from_any_folder(tmp_path, settings, monkeypatch):
    """Texts and a vocabulary file that were named from one folder are stored so that they are found from another."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.txt").write_text("the\ncat\n")
    relative = replace(settings, corpus=("text.txt",), vocabulary=VocabularySettings(vocab=Path("words.txt")))
    stored = begin(ModelFolder("model"), relative).saved.origin.settings
    assert stored.corpus == (str(tmp_path / "text.txt"),)
    assert stored.vocabulary.vocab == tmp_path / "words.txt"


def test_a_model_is_in_the_way_unless_it_may_go(tmp_path, settings):
    """A folder that holds a model is refused, unless it may be overwritten."""
    folder = ModelFolder(tmp_path / "model")
    train(folder, settings)
    with pytest.raises(ModelError, match="holds a model already"):
        begin(folder, settings)
    assert begin(folder, settings, overwrite=True).state.steps == 0


def contents(folder):
    """Return the files of a folder and what they hold."""
    return {path.name: path.read_bytes() for path in folder.path.iterdir() if path.is_file()}


def test_an_older_model_stays_until_the_new_one_is_evaluated(tmp_path, settings):
    """While a run has not been evaluated it is in a file of its own, and can be stopped, resumed or given up."""
    folder = ModelFolder(tmp_path / "model")
    train(folder, settings)
    old, whole = contents(folder), ModelFolder(tmp_path / "whole")
    new = replace(settings, training=replace(TRAINING, seed=9))
    train(whole, new)
    with working(1) as work, folder.held():
        windows = itertools.count(1)
        list(
            follow(
                begin(folder, new, overwrite=True), folder, work, listener=Listener(stopping=lambda: next(windows) == 3)
            )
        )
        assert {name: data for name, data in contents(folder).items() if name != "new.npz"} == old
        assert load_training(folder)[0].window == 3
        for event in follow(resume(folder), folder, work):
            if isinstance(event, Evaluation):
                break
        assert not folder.new.exists()
        assert set(contents(folder)) == set(old)
        assert not set(contents(folder).values()) & {old["best.npz"], old["last.npz"], old["history.jsonl"]}
        list(follow(resume(folder), folder, work))
    ours, theirs = (load_model(place.path).model.parameters for place in (folder, whole))
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_an_older_model_outlives_one_that_diverges(tmp_path, settings):
    """A run that learns nothing leaves the model that it was to overwrite as it was."""
    folder = ModelFolder(tmp_path / "model")
    train(folder, settings)
    old = contents(folder)
    wild = replace(settings, training=replace(TRAINING, lr=1e6, rate_power=0.0, clip=0.0))
    with working(1) as work, folder.held(), pytest.raises(DivergenceError, match=r"the older model in .* is kept"):
        list(follow(begin(folder, wild, overwrite=True), folder, work))
    assert contents(folder) == old


@pytest.mark.parametrize("moment", ["best.npz", "history.jsonl", "last.npz", "new.npz"])
def test_a_kill_while_an_older_model_is_replaced(tmp_path, settings, moment, monkeypatch):
    """Killed between any two of the files that take an older model's place, a run goes on to the same bytes."""
    folder, whole = ModelFolder(tmp_path / "model"), ModelFolder(tmp_path / "whole")
    train(folder, settings)
    new = replace(settings, training=replace(TRAINING, seed=9))
    train(whole, new)
    replaced, unlinked = Path.replace, Path.unlink

    def killed(path, target):
        if Path(target).name == moment and begun:
            raise KeyboardInterrupt
        return replaced(path, target)

    def killed_too(path, missing_ok=False):
        if path.name == moment == "new.npz":
            raise KeyboardInterrupt
        return unlinked(path, missing_ok=missing_ok)

    begun: list[object] = []
    with working(1) as work, folder.held():
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", killed)
            patch.setattr(Path, "unlink", killed_too)
            with pytest.raises(KeyboardInterrupt):
                begun.extend(follow(begin(folder, new, overwrite=True), folder, work))
        list(follow(resume(folder), folder, work))
    for name in ("best.npz", "last.npz"):
        ours, theirs = (np.load(place.path / name) for place in (folder, whole))
        assert all(ours[entry].tobytes() == theirs[entry].tobytes() for entry in set(theirs.files) - {"rnnlm"})


def test_who_stops_listening_loses_nothing(tmp_path, settings):
    """Given up between two events, a run is saved there."""
    folder = ModelFolder(tmp_path / "model")
    with working(1) as work, folder.held():
        for event in follow(begin(folder, settings), folder, work, SaveEvery(seconds=1e6)):
            if isinstance(event, Progress) and (event.epoch, event.window) == (2, 4):
                break
        state = load_training(folder)[0]
        assert (state.epoch, state.window) == (2, 4)


@pytest.mark.usefixtures("pictures")
def test_a_picture_that_cannot_be_drawn_stops_nothing(tmp_path, settings):
    """A folder in the place of curve.svg is refused at the start; made later, it is told once, and training goes on."""
    folder = ModelFolder(tmp_path / "model")
    with working(1) as work, folder.held():
        run = begin(folder, settings)
        folder.curve.mkdir()
        events = list(follow(run, folder, work))
    assert events[-1] == Stopped("3 epochs done")
    assert sum(isinstance(event, NoPicture) for event in events) == 1
    with pytest.raises(ModelError, match=r"curve\.svg: is no plain file; move it away"):
        begin(folder, settings, overwrite=True)


def test_files_of_others_are_not_replaced(tmp_path, settings):
    """A file of one of our names in a folder without a model is somebody's, and is not overwritten unasked."""
    folder = ModelFolder(tmp_path / "model")
    folder.path.mkdir()
    folder.curve.write_text("mine")
    with pytest.raises(ModelError, match="holds a model already"):
        begin(folder, settings)
    assert folder.curve.read_text() == "mine"


def test_a_folder_that_is_moved_ends_its_training(tmp_path, settings):
    """A run whose folder is moved away writes nothing into another of the same name."""
    folder = ModelFolder(tmp_path / "model")
    with working(1) as work, folder.held():
        events = follow(begin(folder, settings), folder, work)
        next(events)
        folder.path.rename(tmp_path / "moved")
        other = ModelFolder(tmp_path / "model")
        train(other, settings)
        before = contents(other)
        with pytest.raises(ModelError, match="the folder was moved or removed during training"):
            list(events)
        assert contents(other) == before


def test_what_a_kill_left_half_written_is_removed(tmp_path):
    """Who holds a folder removes temporary files, also of files that are not written again; others leave them."""
    folder = ModelFolder(tmp_path / "model")
    with folder.held():
        left = [temporary_name(path) for path in folder.files]
        for path in left:
            path.write_bytes(b"half")
        with pytest.raises(ModelError, match="another rnnlm is training here"), ModelFolder(folder.path).held():
            pass
        assert all(path.exists() for path in left)
        folder.curve.touch()  # so that the folder stays
    with ModelFolder(folder.path).held():
        assert [path.name for path in folder.path.iterdir()] == ["curve.svg"]


def test_a_folder_is_free_although_a_fork_has_it(tmp_path, settings):
    """A process that was forked while a run went on does not keep the folder from the next one."""
    folder = ModelFolder(tmp_path / "model")
    with folder.held():
        copy = os.dup(folder._handle)
    try:
        with ModelFolder(folder.path).held():
            pass
    finally:
        os.close(copy)


def test_a_run_begins_with_another_model(tmp_path, settings):
    """Its weights, its vocabulary and its tokenizer are those of the older model, whatever the new text has."""
    old, new = ModelFolder(tmp_path / "old"), ModelFolder(tmp_path / "new")
    train(old, settings)
    text = tmp_path / "new.txt"
    text.write_text("the cat meows\nthe dog barks\n" * 9)
    chosen = RunSettings.of(str(text), {"initial": str(old.path), "epochs": 2, "bptt": 5})
    with working(1) as work, new.held():
        run = begin(new, chosen)
        before, known = load_model(old.path), run.saved
        assert known.vocabulary == before.vocabulary
        assert known.tokenizer == before.tokenizer
        assert run.corpus.unknown > 0
        for name, values in before.model.parameters.items():
            assert np.array_equal(values, run.state.model.parameters[name])
        windows = itertools.count(1)
        list(follow(run, new, work, listener=Listener(stopping=lambda: next(windows) == 2)))
        for entry in new.path.glob("encoded-*"):
            shutil.rmtree(entry)
        assert list(follow(resume(new), new, work))[-1] == Stopped("2 epochs done")
    assert load_model(new.path).origin.settings.initial == str(old.path)
    for name in ("hidden", "vocab_size", "lines"):
        with pytest.raises(SettingsError, match="has no effect beside --from"):
            RunSettings.of(str(text), {"initial": str(old.path), name: 4 if name != "lines" else True})


def test_a_model_that_truncates_goes_on_in_shorter_windows(tmp_path, settings):
    """A truncation that was asked for with longer windows has no effect in these, and is nothing to refuse."""
    old, new = ModelFolder(tmp_path / "old"), ModelFolder(tmp_path / "new")
    train(old, replace(settings, network=replace(settings.network, bptt_truncate=2)))
    chosen = RunSettings.of(settings.corpus, {"initial": str(old.path), "epochs": 1, "bptt": 2})
    with working(1) as work, new.held():
        assert list(follow(begin(new, chosen), new, work))[-1] == Stopped("1 epoch done")
    assert load_model(new.path).model.settings.truncate == 2


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # pytest-xdist has a thread
def test_a_fork_has_no_part_in_a_run(tmp_path, settings):
    """A forked process that ends neither saves the run that its parent goes on with, nor lets the folder go."""
    folder = ModelFolder(tmp_path / "model")
    with working(1) as work, folder.held():
        events = follow(begin(folder, settings), folder, work, SaveEvery(seconds=1e6))
        next(events)
        before = contents(folder)
        child = os.fork()
        if child == 0:
            events.close()
            folder._release([folder.path])
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert contents(folder) == before
        with pytest.raises(ModelError, match="another rnnlm is training here"), ModelFolder(folder.path).held():
            pass
        events.close()
