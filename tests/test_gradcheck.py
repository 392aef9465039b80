"""The referee passes honest gradients and fails each planted fault."""

import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from rnnlm import model as mathematics
from rnnlm.cli.gradcheck import gradcheck as command
from rnnlm.gradcheck import (
    SMALL_STEPS,
    TOLERANCE,
    Kind,
    Row,
    Window,
    check_coordinates,
    check_model,
    check_small_models,
    describe,
    model_gradients,
    random_window,
    small_case,
    small_kinds,
)
from rnnlm.model import (
    CELLS,
    IGNORED,
    SENTENCE_END,
    Array,
    Cell,
    Gradient,
    Gradients,
    LanguageModel,
    ModelSettings,
    Parameters,
    Workspace,
    initialize,
    parameter_table,
)

NAMES = ("U", "W1", "b1", "V", "c")
KINDS = small_kinds()
TRUNCATED = Kind(ModelSettings(words=9, hidden=4, truncate=4, carry_state=False))


def kind_of(truncate: int | None, carry_state: bool = False, cell: str = "elman", dropout: float = 0.0) -> Kind:
    """Name a kind of small model."""
    return Kind(replace(TRUNCATED.settings, truncate=truncate, carry_state=carry_state, cell=cell), dropout)


Check = Callable[..., list[Row]]


def by_coordinates(kind: Kind, gradients: Callable[..., Gradients] = model_gradients) -> list[Row]:
    """Check a small model of a kind, coordinate by coordinate."""
    return check_coordinates(*small_case(kind), gradients=gradients)


def by_directions(kind: Kind, gradients: Callable[..., Gradients] = model_gradients) -> list[Row]:
    """Check the same small model along random directions."""
    model, window = small_case(kind)
    return check_model(model, np.random.default_rng(1), window, gradients=gradients)


def failed(rows: list[Row]) -> set[str]:
    """Names of the parameters whose row did not pass."""
    return {row.parameter for row in rows if not row.passed}


def in_full(gradients: Gradients, model: LanguageModel) -> Parameters:
    """Gradients in which every row is written out."""
    full = {name: np.zeros_like(model.parameters[name]) for name in gradients}
    for name, gradient in gradients.items():
        for rows, values in gradient:
            full[name][rows] = values
    return full


def whole(full: Parameters) -> Gradients:
    """Gradients that say something of every row."""
    return {name: [(slice(0, len(value)), value)] for name, value in full.items()}


def planted(name: str, fault: Callable[[Array], Array]) -> Callable[[LanguageModel, Window], Gradients]:
    """Return the model's gradients, with a fault put into one parameter's."""

    def gradients(model: LanguageModel, window: Window) -> Gradients:
        full = in_full(model_gradients(model, window), model)
        return whole({**full, name: fault(full[name])})

    return gradients


BOTH = pytest.mark.parametrize("check", [by_coordinates, by_directions])
EVERY_NAME = pytest.mark.parametrize("name", NAMES)


# What it checks


def test_every_kind_is_checked_in_full_and_passes() -> None:
    """Each cell, carried state or not, each truncation: every coordinate compared, the worst error far under."""
    rows = check_small_models()
    expected = [(describe(kind), name) for kind in KINDS for name in parameter_table(kind.settings)]
    assert sorted((row.kind, row.parameter) for row in rows) == sorted(expected)
    assert len(set(expected)) == len(expected)
    assert all(row.coordinates == np.prod(row.shape) for row in rows)
    assert all(row.passed for row in rows)
    assert 0 < max(row.worst_error for row in rows) < TOLERANCE / 10


def test_kinds_are_what_train_can_build() -> None:
    """Every entry of CELLS with every sort of truncation, one longer than the window; dropout and tails with both."""
    reaches = {(truncate, 0, 0, 1, None) for truncate in (None, 0, 1, 4, SMALL_STEPS + 3)}
    reaches |= {(None, 0.3, 0, 1, None), (4, 0.3, 0, 1, None), (None, 0, 1, 1, None), (4, 0, 3, 1, None)}
    reaches |= {(truncate, 0, 0, 2, embedding) for truncate in (None, 4) for embedding in (None, 3)}
    expected = {(cell, carry, *reach) for cell in CELLS for carry in (False, True) for reach in reaches}
    found = [
        (s.cell, s.carry_state, s.truncate, kind.dropout, len(s.cutoffs), s.layers, s.embedding)
        for kind in KINDS
        for s in [kind.settings]
    ]
    assert set(found) == expected
    assert len(found) == len(expected)


def test_window_holds_what_training_meets() -> None:
    """Sentences begin inside the window, one stream has none, targets are ignored, and a state comes before it."""
    _, window = small_case(TRUNCATED)
    begins = (window.inputs == SENTENCE_END).sum(axis=0)
    assert list(begins) == [0, 1, 2]
    assert (window.inputs[1:] == SENTENCE_END).any()
    assert (window.targets == IGNORED).sum() == window.targets.size // 8
    assert np.all(window.weights > 0)
    assert np.all(window.states != 0)


@pytest.fixture
def few_kinds(monkeypatch: pytest.MonkeyPatch) -> list[Kind]:
    """Leave three kinds, where it matters that there are several and not which."""
    few = KINDS[:2] + KINDS[-1:]
    monkeypatch.setattr("rnnlm.gradcheck.small_kinds", lambda: few)
    return few


def test_progress_names_each_kind(few_kinds: list[Kind]) -> None:
    """The caller hears of each kind, in order."""
    heard: list[str] = []
    check_small_models(progress=heard.append)
    assert heard == [describe(kind) for kind in few_kinds]
    assert len(set(heard)) == len(few_kinds)


def test_numeric_side_is_the_derivative_of_the_loss() -> None:
    """Where nothing is cut, the reported numeric value is the slope of the plain loss at the reported coordinate."""
    model, window = small_case(kind_of(None))
    for row in check_coordinates(model, window):
        slope = []
        for step in (1e-6, -1e-6):
            moved = {name: value.copy() for name, value in model.parameters.items()}
            moved[row.parameter][row.where] += step
            changed = LanguageModel(model.settings, moved)
            (losses, _), _ = changed.losses(window.inputs, window.targets, window.states, Workspace())
            slope.append(float((losses * window.weights).sum()))
        assert row.numeric == pytest.approx((slope[0] - slope[1]) / 2e-6, rel=1e-3, abs=1e-9)


def test_saved_model_passes_along_directions() -> None:
    """A float32 model of a few thousand numbers passes on random words, each parameter alone and all together."""
    generator = np.random.default_rng(0)
    settings = ModelSettings(words=120, hidden=16, truncate=3)
    model = initialize(settings, generator.integers(1, 100, 120), generator)
    rows = check_model(model, generator, directions=3)
    assert [row.parameter for row in rows] == [*NAMES, "all"]
    assert all(row.passed and row.coordinates == 3 for row in rows)
    assert max(row.worst_error for row in rows) < TOLERANCE / 10
    assert all(value.dtype == np.float32 for value in model.parameters.values())


def test_window_of_text_is_checked_if_given() -> None:
    """The directions' check reads the window that it is given, and only that."""
    model, window = small_case(TRUNCATED)
    seen = []

    def gradients(model: LanguageModel, window: Window) -> Gradients:
        seen.append(window)
        return model_gradients(model, window)

    check_model(model, np.random.default_rng(0), window, gradients=gradients)
    assert len(seen) == 1
    assert seen[0] is window


def test_long_truncation_is_met_by_a_longer_window() -> None:
    """Random words for a model that reaches far back are more than its reach."""
    lengths = []

    def gradients(model: LanguageModel, window: Window) -> Gradients:
        lengths.append(len(window.inputs))
        return model_gradients(model, window)

    rows = check_model(small_case(kind_of(20, True))[0], np.random.default_rng(0), gradients=gradients)
    assert not failed(rows)
    assert lengths[0] > 21


# What it catches


@BOTH
@EVERY_NAME
@pytest.mark.parametrize("kind", [TRUNCATED, kind_of(None, True), kind_of(4, dropout=0.3)], ids=describe)
def test_a_tenth_of_a_percent_is_caught(check: Check, name: str, kind: Kind) -> None:
    """A gradient that is 0.1% too large in one parameter fails there, and nowhere else."""
    rows = check(kind, planted(name, lambda gradient: gradient * 1.001))
    assert failed(rows) - {"all"} == {name}
    assert next(row for row in rows if row.parameter == name).worst_error == pytest.approx(0.001, rel=0.01)


@EVERY_NAME
def test_one_wrong_coordinate_is_caught_and_named(name: str) -> None:
    """A single number that is 0.1% too large fails, be it the smallest of its parameter, and the row says where."""
    model, window = small_case(TRUNCATED)
    honest = in_full(model_gradients(model, window), model)[name]
    by_size = sorted((place for place in np.ndindex(honest.shape) if honest[place]), key=lambda p: abs(honest[p]))
    for place in (by_size[0], by_size[len(by_size) // 2], by_size[-1]):

        def fault(gradient: Array, place: tuple[int, ...] = place) -> Array:
            changed = gradient.copy()
            changed[place] *= 1.001
            return changed

        wrong = planted(name, fault)(model, window)

        def gradients(model: LanguageModel, window: Window, wrong: Gradients = wrong) -> Gradients:
            return wrong

        row = next(row for row in check_coordinates(model, window, gradients=gradients) if row.parameter == name)
        assert not row.passed
        assert row.where == place
        assert row.analytic == pytest.approx(honest[place] * 1.001)


@BOTH
@EVERY_NAME
def test_zero_gradient_is_caught(check: Check, name: str) -> None:
    """A gradient of zero where the loss does change is wrong by all of it."""
    rows = check(TRUNCATED, planted(name, np.zeros_like))
    assert failed(rows) - {"all"} == {name}
    assert next(row for row in rows if row.parameter == name).worst_error == 1


@BOTH
@pytest.mark.parametrize(("name", "value"), [*((name, np.nan) for name in NAMES), ("W1", np.inf), ("W1", -np.inf)])
def test_nan_and_infinity_are_caught(check: Check, name: str, value: float) -> None:
    """One number that is not finite makes the error infinite: NaN > tolerance would have been false."""

    def fault(gradient: Array) -> Array:
        changed = gradient.copy()
        changed.reshape(-1)[-1] = value
        return changed

    rows = check(TRUNCATED, planted(name, fault))
    assert failed(rows) - {"all"} == {name}
    assert next(row for row in rows if row.parameter == name).worst_error == np.inf


@BOTH
def test_nothing_compared_is_no_pass(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where losses do not depend on a parameter and its gradient is zero, 0/0 fails."""
    model, window = small_case(TRUNCATED)
    unread = window._replace(targets=np.full_like(window.targets, IGNORED))
    monkeypatch.setattr(sys.modules[__name__], "small_case", lambda kind: (model, unread))

    def gradients(model: LanguageModel, window: Window) -> Gradients:
        return whole({name: np.zeros_like(value) for name, value in model.parameters.items()})

    rows = check(TRUNCATED, gradients)
    assert failed(rows) >= set(NAMES)
    assert all(row.worst_error == np.inf for row in rows)


@BOTH
@pytest.mark.parametrize(("truncate", "wrong"), [(0, 1), (1, 0), (1, 2), (4, 3), (4, 5), (4, None), (None, 4), (11, 4)])
def test_wrong_truncation_is_caught(check: Check, truncate: int | None, wrong: int | None) -> None:
    """A gradient that reaches a step too far, or not far enough, fails in each parameter below the states."""

    def gradients(model: LanguageModel, window: Window) -> Gradients:
        return model_gradients(LanguageModel(replace(model.settings, truncate=wrong), model.parameters), window)

    rows = check(kind_of(truncate), gradients)
    assert failed(rows) - {"all"} == {"U", "W1", "b1"}


@BOTH
@pytest.mark.parametrize("name", ["W1", "V"])
def test_transposed_gradient_is_caught(check: Check, name: str) -> None:
    """A transposed dW has the right shape, and fails; a transposed dV has not even that."""
    rows = check(TRUNCATED, planted(name, np.transpose))
    assert failed(rows) - {"all"} == {name}


@BOTH
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.settings.truncate != 0], ids=describe)
def test_missing_mask_is_caught(check: Check, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient that runs on across the beginning of a sentence fails, unless the state does so too."""
    honest = mathematics.walk

    def walk(inputs: Array, keep: Array, *rest: Any) -> object:
        walked = honest(inputs, keep, *rest)

        def unmasked(streams: slice) -> object:
            keep[...] = 1
            return walked.back(streams)

        return walked._replace(back=unmasked)

    monkeypatch.setattr(mathematics, "walk", walk)
    below = {name for name in parameter_table(kind.settings) if name not in ("V", "c")}
    assert failed(check(kind)) - {"all"} == (set() if kind.settings.carry_state else below)


@BOTH
@pytest.mark.parametrize("truncate", [None, 4])
@pytest.mark.parametrize("place", ["inputs", "outputs"])
def test_forgotten_zeros_are_caught(
    check: Check, place: str, truncate: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gradient that runs on through a number that dropout zeroed fails."""
    honest, calls = mathematics.drop, itertools.count()

    def drop(values: Array, dropout: Any, work: Workspace) -> object:
        result, backward = honest(values, dropout, work)
        forgotten = ("inputs", "outputs")[next(calls) % 2] == place  # of a window's two calls
        return result, (lambda dvalues: dvalues) if forgotten else backward

    monkeypatch.setattr(mathematics, "drop", drop)
    wrong = failed(check(kind_of(truncate, dropout=0.3))) - {"all"}
    assert wrong == ({"U"} if place == "inputs" else {"U", "W1", "b1"})
    assert not failed(check(kind_of(truncate)))


def test_zeros_belong_to_steps() -> None:
    """A window in pieces has the zeros of the whole: dropout draws again for each, and is handed the same numbers."""
    model, window = small_case(kind_of(None, dropout=0.3))
    (whole, after), _ = window.losses(model, Workspace())
    (first, state), _ = window.part(slice(0, 3), window.states).losses(model, Workspace())
    (second, state), _ = window.part(slice(3, None), state).losses(model, Workspace())
    np.testing.assert_allclose(np.concatenate((first, second)), whole, rtol=1e-13)
    np.testing.assert_allclose(state, after, rtol=1e-13)
    assert not np.allclose(whole, window._replace(dropout=0.0).losses(model, Workspace())[0][0])


def test_more_draws_than_prepared_are_an_error() -> None:
    """Dropout that asks for more random numbers than the window has cannot be checked, and does not pass."""
    model, window = small_case(kind_of(None, dropout=0.3))
    with pytest.raises(ValueError, match="prepared"):
        check_coordinates(model, window._replace(draws=window.draws[..., :5]))


@BOTH
def test_shifted_weights_are_caught(check: Check) -> None:
    """A dW whose weights are a step late fails."""

    def gradients(model: LanguageModel, window: Window) -> Gradients:
        later = np.roll(window.weights, 1, axis=0)
        return {**model_gradients(model, window), "W1": model_gradients(model, window._replace(weights=later))["W1"]}

    assert failed(check(TRUNCATED, gradients)) - {"all"} == {"W1"}


@BOTH
@EVERY_NAME
def test_missing_gradient_is_caught(check: Check, name: str) -> None:
    """A parameter without a gradient fails."""

    def gradients(model: LanguageModel, window: Window) -> Gradients:
        return {key: value for key, value in model_gradients(model, window).items() if key != name}

    rows = check(TRUNCATED, gradients)
    assert failed(rows) == {name}
    assert next(row for row in rows if row.parameter == name).where == "no gradient"


@BOTH
def test_extra_gradient_is_caught(check: Check) -> None:
    """A gradient without a parameter fails."""

    def gradients(model: LanguageModel, window: Window) -> Gradients:
        return {**model_gradients(model, window), "D": [(slice(0, 3), np.ones(3))]}

    rows = check(TRUNCATED, gradients)
    assert failed(rows) == {"D"}
    assert rows[-1].where == "no such parameter"


@BOTH
@pytest.mark.parametrize(
    ("fault", "where"),
    [
        (lambda ids, values: [(ids, values[:, :-1])], "shape"),
        (lambda ids, values: [(ids, values[:-1])], "shape"),
        (lambda ids, values: [(np.maximum(ids, ids[1]), values)], "rows not disjoint"),
        (lambda ids, values: [(ids, values), (slice(ids[0], ids[0] + 1), values[:1])], "rows not disjoint"),
        (lambda ids, values: [(ids + 5, values)], "rows outside"),
        (lambda ids, values: [(ids - 1, values)], "rows outside"),
        (lambda ids, values: [(ids, values.astype(np.float32))], "float32"),
    ],
    ids=["narrow", "short", "twice", "overlapping", "outside", "negative", "float32"],
)
def test_malformed_rows_are_caught(check: Check, fault: Callable[..., Gradient], where: str) -> None:
    """Rows of a table must be whole, each once, inside the table, and as precise as the parameters."""

    def gradients(model: LanguageModel, window: Window) -> Gradients:
        honest = model_gradients(model, window)
        ((ids, values),) = honest["U"]
        return {**honest, "U": fault(ids, values)}

    rows = check(TRUNCATED, gradients)
    assert failed(rows) == {"U"}
    assert str(next(row for row in rows if row.parameter == "U").where).startswith(where)


def test_ignored_targets_must_not_leak() -> None:
    """A gradient that counts an ignored position fails."""

    def gradients(model: LanguageModel, window: Window) -> Gradients:
        return model_gradients(model, window._replace(targets=np.where(window.targets == IGNORED, 1, window.targets)))

    assert failed(by_coordinates(TRUNCATED, gradients)) == set(NAMES)


# Cells that model.py does not have: the recurrence needs no second version for them.


def sigmoid(values: Array) -> Array:
    """1 / (1 + e^-x)."""
    return 1 / (1 + np.exp(-values))


def gru_forward(z: Array, before: Array, after: Array) -> None:
    """Gates r and u, candidate n = tanh(n + r q), state u s + (1 - u) n; the gates' values are left in z."""
    n, r, u, q = np.split(z, 4, axis=-1)
    r[...], u[...] = sigmoid(r), sigmoid(u)
    n[...] = np.tanh(n + r * q)
    after[0] = u * before[0] + (1 - u) * n


def gru_backward(ds: Array, z: Array, before: Array, after: Array) -> Array:
    """Give the derivatives of gru_forward."""
    n, r, u, q = np.split(z, 4, axis=-1)
    dn = ds[0] * (1 - u) * (1 - n * n)
    du = ds[0] * (before[0] - n) * u * (1 - u)
    ds *= u
    return np.concatenate((dn, dn * q * r * (1 - r), du, dn * r), axis=-1)


def lstm_forward(z: Array, before: Array, after: Array) -> None:
    """Gates i, f, o and candidate g; cell state c = f c + i g, output o tanh(c); the gates' values are left in z."""
    i, f, o, g = np.split(z, 4, axis=-1)
    for gate in (i, f, o):
        gate[...] = sigmoid(gate)
    g[...] = np.tanh(g)
    s, c = after
    c[...] = f * before[1] + i * g
    s[...] = o * np.tanh(c)


def lstm_backward(ds: Array, z: Array, before: Array, after: Array) -> Array:
    """Give the derivatives of lstm_forward."""
    i, f, o, g = np.split(z, 4, axis=-1)
    squashed = np.tanh(after[1])
    dc = ds[1] + ds[0] * o * (1 - squashed * squashed)
    do = ds[0] * squashed * o * (1 - o)
    ds[0], ds[1] = 0, dc * f
    return np.concatenate((dc * g * i * (1 - i), dc * before[1] * f * (1 - f), do, dc * i * (1 - g * g)), axis=-1)


GRU = Cell(gru_forward, gru_backward, gates="nruq", reads="nru", recalls="ruq")
LSTM = Cell(lstm_forward, lstm_backward, gates="ifog", states="sc", ones="f")


@pytest.mark.parametrize("cell", [GRU, LSTM], ids=["gru", "lstm"])
@pytest.mark.parametrize("carry_state", [False, True])
@pytest.mark.parametrize("truncate", [None, 1, 4])
@pytest.mark.parametrize(("layers", "embedding"), [(1, None), (2, None), (2, 3)])
def test_cells_with_gates_and_several_states_pass(
    cell: Cell,
    carry_state: bool,
    truncate: int | None,
    layers: int,
    embedding: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A GRU and an LSTM written as a table's entries have exact gradients in both truncations, in one layer and two."""
    monkeypatch.setitem(CELLS, "new", cell)
    kind = kind_of(truncate, carry_state, cell="new")
    kind = kind._replace(settings=replace(kind.settings, layers=layers, embedding=embedding))
    rows = by_coordinates(kind)
    assert [row.parameter for row in rows] == list(parameter_table(kind.settings))
    assert not failed(rows)


@pytest.mark.parametrize("truncate", [None, 4])
@pytest.mark.parametrize("cell", [GRU, LSTM], ids=["gru", "lstm"])
def test_a_lost_path_beside_w_is_caught(cell: Cell, truncate: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that goes back through W only, and not through the gates' state, fails."""

    def forgetful(ds: Array, *arrays: Array) -> Array:
        delta = cell.backward(ds, *arrays)
        ds[...] = 0
        return delta

    monkeypatch.setitem(CELLS, "new", cell._replace(backward=forgetful))
    rows = by_coordinates(kind_of(truncate, cell="new"))
    assert failed(rows) == {"U", "W1", "b1"}


def test_layers_truncated_one_by_one_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors that reach K steps back in each layer by itself, 2 K in all, are another sum, and fail."""

    def layer_by_layer(ds: Array, walked: list[Any], streams: slice, truncate: int) -> None:
        for number in reversed(range(len(walked))):
            honest(ds, walked[number : number + 1], streams, truncate)
            ds = walked[number].inputs(walked[number].dz)

    honest = mathematics.by_diagonals
    monkeypatch.setattr(mathematics, "by_diagonals", layer_by_layer)
    settings = replace(TRUNCATED.settings, layers=2, truncate=1)
    assert failed(by_coordinates(Kind(settings))) == {"U", "W1", "b1"}


# The command


def test_command_prints_a_table_and_succeeds() -> None:
    """A row for each parameter of each kind on standard output, and the worst error last."""
    result = CliRunner().invoke(command, [])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    checked = sum(len(parameter_table(kind.settings)) for kind in KINDS)
    assert len([line for line in lines if line.endswith(" ok")]) == checked
    assert lines[0].split()[:3] == ["parameter", "shape", "coordinates"]
    assert max(map(len, lines)) <= 80
    assert "worst relative error" in lines[-1]
    assert "Traceback" not in result.output


def test_command_fails_with_exit_code_1(few_kinds: list[Kind], monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong derivative in model.py itself is reported parameter by parameter, and the command exits 1."""
    elman = CELLS["elman"]

    def backward(*arrays: Array) -> Array:
        return elman.backward(*arrays) * 1.001

    monkeypatch.setitem(CELLS, "elman", elman._replace(backward=backward))
    result = CliRunner().invoke(command, [])
    assert result.exit_code == 1
    failures = [line for line in result.stdout.splitlines() if " FAIL at (" in line]
    assert len(failures) == sum(len(parameter_table(kind.settings)) - 2 for kind in few_kinds)  # all but V and c


@pytest.mark.usefixtures("few_kinds")
def test_command_fails_at_a_tolerance_nobody_meets() -> None:
    """The tolerance is the user's to set."""
    assert CliRunner().invoke(command, ["--tolerance", "1e-30"]).exit_code == 1
    assert CliRunner().invoke(command, ["--tolerance", "0"]).exit_code == 2


@pytest.mark.usefixtures("few_kinds")
def test_command_prints_json() -> None:
    """--json gives the same rows as one object."""
    result = CliRunner().invoke(command, ["--json", "--seed", "3"])
    report = json.loads(result.stdout)
    assert report["passed"] is True
    assert report["tolerance"] == TOLERANCE
    rows = check_small_models(seed=3)
    assert report["worst_error"] == max(row.worst_error for row in rows)
    assert [(row["kind"], row["parameter"], row["analytic"]) for row in report["rows"]] == [
        (row.kind, row.parameter, row.analytic) for row in rows
    ]


@pytest.mark.usefixtures("few_kinds")
def test_json_stays_json_when_numbers_are_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    """A NaN becomes null: the word NaN would not parse elsewhere."""
    elman = CELLS["elman"]
    broken = elman._replace(backward=lambda ds, *arrays: np.full_like(ds[0], np.nan))
    monkeypatch.setitem(CELLS, "elman", broken)
    result = CliRunner().invoke(command, ["--json"])
    assert result.exit_code == 1

    def refuse(name: str) -> None:
        raise AssertionError(name)

    report = json.loads(result.stdout, parse_constant=refuse)
    assert report["passed"] is False
    assert report["worst_error"] is None


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> LanguageModel:
    """Make a model that rnnlm.checkpoint loads, whatever the path."""
    generator = np.random.default_rng(0)
    model = initialize(ModelSettings(words=30, hidden=6), np.ones(30), generator)
    checkpoint = ModuleType("rnnlm.checkpoint")
    monkeypatch.setattr(checkpoint, "load_model", lambda path: SimpleNamespace(model=model), raising=False)
    monkeypatch.setitem(sys.modules, "rnnlm.checkpoint", checkpoint)
    return model


def test_command_checks_a_saved_model(saved: LanguageModel) -> None:
    """With --model, six rows: five parameters and all together, along as many directions as asked for."""
    result = CliRunner().invoke(command, ["--model", "some.npz", "--directions", "2", "--json"])
    assert result.exit_code == 0
    rows = json.loads(result.stdout)["rows"]
    assert [(row["parameter"], row["coordinates"]) for row in rows] == [(name, 2) for name in (*NAMES, "all")]
    table = CliRunner().invoke(command, ["--model", "some.npz"]).stdout
    assert "direction" in table


def test_directions_without_a_model_are_refused() -> None:
    """An option that would have no effect is wrong usage, and the message says what to add."""
    result = CliRunner().invoke(command, ["--directions", "2"])
    assert result.exit_code == 2
    assert "--model" in result.stderr


def test_random_window_reads_no_last_word() -> None:
    """One word is never read, so that its row of U has to come out as zero."""
    model, window = small_case(TRUNCATED)
    assert (model.settings.words - 1) not in window.inputs
    longer = random_window(model, 200, 4, np.random.default_rng(2))
    assert longer.inputs.max() == model.settings.words - 2
