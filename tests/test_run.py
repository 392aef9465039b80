"""Trainings without the command line: what a Python user does."""

import itertools

import numpy as np
import pytest

import rnnlm
from rnnlm import ModelFolder, RunSettings, begin, follow, load_model, resume, working
from rnnlm.checkpoint import NetworkSettings
from rnnlm.errors import ModelError, SettingsError
from rnnlm.run import SaveEvery, Stopped
from rnnlm.text import TextSettings
from rnnlm.training import Evaluation, Progress, TrainingSettings

TRAINING = TrainingSettings(window=5, streams=2, epochs=3)


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
    assert events[-1] == Stopped("3 epochs are done")
    assert sum(isinstance(event, Evaluation) for event in events) == 3
    assert {type(event) for event in events} >= {Progress, Evaluation, Stopped}
    saved = load_model(folder.path)
    assert saved.origin.epoch <= 3
    assert saved.origin.settings.training.learning_rate == 0.00075
    assert saved.origin.settings == RunSettings.from_json(saved.origin.settings.to_json())
    assert capfd.readouterr() == ("", "")


def test_a_run_stops_when_it_is_told_and_goes_on_from_there(tmp_path, settings):
    """Stopped after any window and resumed, a run ends with the same bytes as one that went through."""
    whole = ModelFolder(tmp_path / "whole")
    windows = sum(isinstance(event, Progress) for event in train(whole, settings))
    for stop in (1, 4, windows - 1):
        folder = ModelFolder(tmp_path / f"part {stop}")
        count = itertools.count(1)
        events = train(folder, settings, stopping=lambda count=count, stop=stop: next(count) == stop)
        assert events[-1] == Stopped(None)
        with working(2) as work, folder.held():
            events = list(follow(resume(folder), folder, work, SaveEvery(windows=1)))
        assert events[-1] == Stopped("3 epochs are done")
        for name in ("best.npz", "last.npz"):
            ours, theirs = (np.load(place.path / name) for place in (folder, whole))
            for entry in set(theirs.files) - {"rnnlm"}:
                assert ours[entry].tobytes() == theirs[entry].tobytes(), entry


def test_what_may_change_on_resuming(tmp_path, settings):
    """Epochs and patience may be raised; a finished run says so, and a caller's check may refuse."""
    folder = ModelFolder(tmp_path / "model")
    train(folder, settings)
    with working(1) as work, folder.held():
        with pytest.raises(SettingsError, match="training is finished, 3 epochs are done"):
            resume(folder)
        events = list(follow(resume(folder, epochs=4), folder, work))
        assert events[-1] == Stopped("4 epochs are done")
        assert resume(folder, epochs=5).settings.epochs == 5

        def refuse(stored):
            assert stored.training.streams == 2
            raise SettingsError("no")

        with pytest.raises(SettingsError, match="no"):
            resume(folder, epochs=5, check=refuse)


def test_a_model_is_in_the_way_unless_it_may_go(tmp_path, settings):
    """A folder that holds a model is refused, unless it may be overwritten."""
    folder = ModelFolder(tmp_path / "model")
    train(folder, settings)
    with pytest.raises(ModelError, match="holds a model already"):
        begin(folder, settings)
    assert begin(folder, settings, overwrite=True).state.steps == 0


def test_what_the_package_offers():
    """Each name that the package lists can be imported from it, and no other."""
    for name in rnnlm.__all__:
        assert getattr(rnnlm, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        _ = rnnlm.train
