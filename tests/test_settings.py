"""Settings: types, ranges and what goes together, for constructors, for options by name and for files."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Literal, get_args

import numpy as np
import pytest

from rnnlm.checking import Checked, Range, Settings, Unfit, brief, fit, kinds, restore
from rnnlm.errors import SettingsError
from rnnlm.model import CELLS
from rnnlm.settings import GenerationSettings, NetworkSettings, RunSettings, SaveEvery, TrainingSettings


@pytest.mark.parametrize(
    ("limits", "inside", "outside", "words"),
    [
        (Range(1, 100_000), [1, 100_000], [0, 100_001], "from 1 up to 100,000"),
        (Range(0), [0, 1e300], [-1e-9, float("inf"), float("nan")], "from 0 upwards"),
        (Range(0, 1, above=True), [1e-9, 1], [0, 1.1], "above 0 and up to 1"),
        (Range(0, 1, below=True), [0, 0.999], [1], "from 0 to below 1"),
        (Range(0, above=True), [1e-300], [0, float("inf")], "above 0"),
        (Range(0, infinite=True), [0, float("inf")], [-1, float("nan")], "from 0 upwards"),
    ],
)
def test_ranges_hold_what_they_say(limits, inside, outside, words):
    """Ends belong to a range or not; infinity only where it is said, what is no number never."""
    assert all(limits.holds(number) for number in inside)
    assert not any(limits.holds(number) for number in outside)
    assert str(limits) == words


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (int, [(3, 3), (np.int64(3), 3)], [3.0, True, "3", None, np.zeros(2), float("nan")]),
        (float, [(3, 3.0), (np.float32(0.5), 0.5), (float("inf"), float("inf"))], ["3", None, True, 10**400]),
        (bool, [(True, True)], [1, 0, "yes", None]),
        (str, [("a", "a"), (Path("a"), "a")], [b"a", 5, None, "a\0b"]),
        (Path, [("a", Path("a")), (Path("a"), Path("a"))], [5, b"a", "a\0"]),
        (int | None, [(None, None), (3, 3)], ["3", 3.5]),
        (Literal["a", "b"], [("a", "a")], ["c", None, ["a"]]),
        (tuple[str, ...], [(["a", "b"], ("a", "b")), ((), ())], ["ab", [1], None, {}]),
        (tuple[str, str], [(["a", "b"], ("a", "b"))], [["a"], ["a", "b", "c"]]),
        (list[int], [((1, 2), [1, 2])], [["x"], 5]),
        (dict[str, int], [({"a": 1}, {"a": 1})], [{"a": "x"}, {1: 1}, []]),
        (Annotated[int, Range(2, 3)], [(2, 2)], [1, 4]),
    ],
)
def test_values_are_taken_as_they_are_or_refused(kind, good, bad):
    """Nothing is guessed: a whole number is no 3.0, true is no number, a text is no list."""
    for value, expected in good:
        found = fit(kind, value, "field")
        assert (found, type(found)) == (expected, type(expected))
    for value in bad:
        with pytest.raises(Unfit, match=r"^field"):
            fit(kind, value, "field")


@dataclass(frozen=True)
class Inner(Checked):
    """Some fields."""

    count: Annotated[int, Range(1)]
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer(Settings):
    """Some more."""

    inner: Inner
    top_k: int = 3


def test_what_a_file_holds_is_named_by_its_place():
    """A field that is missing, unknown or wrong is called by the way that leads to it."""
    whole = {"inner": {"count": 2, "names": ["a"]}, "top_k": 4}
    assert restore(Outer, whole, "file") == Outer(Inner(2, ("a",)), 4)
    for change, message in [
        (
            {"inner": {"count": 0, "names": []}},
            r"^file\.inner\.count is 0, where a whole number from 1 .* must stand$",
        ),
        ({"inner": {"count": 2, "names": ["a", 5]}}, r"^file\.inner\.names\[1\] is 5, where a text must stand$"),
        ({"inner": {"count": 2}}, r"^file\.inner\.names is None, where a value must stand$"),
        ({"inner": []}, r"^file\.inner is \[\], where an object must stand$"),
        ({"more": 1}, r"^file\.'more' is 1, where nothing must stand$"),
    ]:
        with pytest.raises(Unfit, match=message):
            restore(Outer, {**whole, **change}, "file")


def test_what_a_user_gives_is_named_as_an_option():
    """Constructors of settings speak of options, others of fields."""
    with pytest.raises(SettingsError, match=r"^--top-k is 1\.5; it takes a whole number$"):
        Outer(Inner(1), 1.5)
    with pytest.raises(Unfit, match=r"^count is 0"):
        Inner(0)


def test_long_values_are_brief():
    """A sentence holds a short form of whatever was given."""
    for value in ("x" * 10**6, [list(range(9))] * 10**5, 10**5000, {"a": {"b": {"c": {}}}}):
        assert len(brief(value)) < 200


def test_settings_come_back_from_json():
    """What JSON keeps of settings gives the same settings."""
    settings = RunSettings.of(["a", "b"], {"hidden": 20, "vocab": "words.txt", "optimizer": "adam", "valid": "c"})
    assert restore(RunSettings, json.loads(json.dumps(asdict(settings), default=str)), "settings") == settings
    assert settings.vocabulary.vocab == Path("words.txt")
    assert settings.valid == ("c",)


def test_every_default_is_in_its_range_and_every_name_is_one_options():
    """No setting has the name of another, so that an option says which is meant."""
    names = [item.name for group in (RunSettings, *RunSettings.groups().values()) for item in fields(group)]
    assert len(names) == len(set(names))
    for owner in (*RunSettings.groups().values(), GenerationSettings):
        assert owner() == restore(owner, json.loads(json.dumps(asdict(owner()))), "settings")
        assert set(kinds(owner)) >= {item.name for item in fields(owner)}


@pytest.mark.parametrize(("value", "windows", "seconds"), [("500", 500, 0), (7, 7, 0), ("0.5m", 0, 30)])
def test_savings_are_told_by_windows_or_minutes(value, windows, seconds):
    """A number is of windows, a number with m of minutes."""
    assert SaveEvery.of(value) == SaveEvery(windows, seconds)


@pytest.mark.parametrize("value", ["", "0", "0m", "-1", "1.5", "10x", "m", "1e3", "9" * 5000, None, "\u0663"])
def test_other_intervals_are_refused(value):
    """One sentence says what is wanted."""
    with pytest.raises(SettingsError, match="it takes a number of windows, as in 500, or of minutes, as in 10m"):
        SaveEvery.of(value)


def test_neutral_values_of_options_without_effect_are_allowed():
    """What says that nothing is wanted contradicts nothing."""
    assert TrainingSettings(optimizer="adam", momentum=0, rate_power=0).momentum == 0
    with pytest.raises(SettingsError, match="--rate-power goes with --optimizer sgd"):
        TrainingSettings(optimizer="adagrad", rate_power=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"tied": True, "embedding": 50, "hidden": 60},
            "--embedding is 50 where --hidden is 60; leave",
        ),
        ({"dropout_hidden": 0.1}, "--dropout-hidden is between layers and has no effect on one"),
        (
            {"dropout": 0.1, "dropout_input": 0.2, "dropout_output": 0.0},
            "--dropout has no effect beside --dropout-input and --dropout-output",
        ),
        (
            {"dropout": 0.1, "dropout_input": 0.2, "dropout_hidden": 0.1, "dropout_output": 0.0, "layers": 2},
            "--dropout has no effect beside --dropout-input and --dropout-hidden and --dropout-output",
        ),
        ({"dropout_state": 0.3, "carry_state": False}, "--dropout-state has no effect without --carry-state"),
        ({"cell": "rnn"}, "--cell is 'rnn'; it takes one of elman, relu, sigmoid, gru, lstm"),
        ({"layers": 0}, "--layers is 0; it takes a whole number from 1 up to 100"),
        ({"dropout_weights": 1}, "--dropout-weights is 1; it takes a number from 0 to below 1"),
    ],
)
def test_a_network_that_contradicts_itself_is_refused(options, message):
    """Sizes of a tied table, kinds that there are not, and rates of dropout that nothing is dropped at."""
    with pytest.raises(SettingsError, match=message):
        RunSettings.of("text.txt", options)


@pytest.mark.parametrize(
    "options",
    [
        {"tied": True, "embedding": 60, "hidden": 60},
        {"tied": True},
        {"dropout_hidden": 0},
        {"dropout_hidden": 0.1, "layers": 2},
        {"dropout": 0.1, "dropout_input": 0.2, "dropout_output": 0.0, "layers": 2},
        {"dropout": 0, "dropout_input": 0.2, "dropout_output": 0.1},
        {"dropout_hidden": 0.1, "initial": "model"},  # whose layers are not known yet
    ],
)
def test_a_network_that_can_be_is_accepted(options):
    """What has an effect, and what asks for nothing, is no contradiction."""
    RunSettings.of("text.txt", options)


def test_every_cell_can_be_asked_for():
    """The kinds that the settings know, which load no numpy, are those that the model's file computes."""
    assert get_args(kinds(NetworkSettings)["cell"]) == tuple(CELLS)
