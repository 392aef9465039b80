"""The referee passes honest gradients and fails each planted fault."""

import functools
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

from conftest import all_in_full
from rnnlm import gradcheck as referee
from rnnlm import model as mathematics
from rnnlm.cli.gradcheck import gradcheck as command
from rnnlm.gradcheck import (
    NO_DROPOUT,
    SMALL_EMBEDDING,
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
    small_kinds,
)
from rnnlm.model import (
    CELLS,
    IGNORED,
    SENTENCE_END,
    Array,
    Dropout,
    Gradient,
    Gradients,
    LanguageModel,
    ModelSettings,
    Parameters,
    Workspace,
    initialize,
    parameter_table,
)

small_case = functools.cache(referee.small_case)  # no test writes into what it returns
NAMES = ("U", "W1", "b1", "V", "c")
KINDS = small_kinds()
TRUNCATED = Kind(ModelSettings(words=9, hidden=3, truncate=2, carry_state=False))
PLACES = tuple(vars(NO_DROPOUT))  # where dropout may act
EVERYWHERE = Dropout(0.3, 0.3, 0.3, 0.3)


def kind_of(
    truncate: int | None,
    carry_state: bool = False,
    cell: str = "elman",
    dropout: Dropout = NO_DROPOUT,
    **settings: Any,
) -> Kind:
    """Name a kind of small model."""
    own = {"truncate": truncate, "carry_state": carry_state, "cell": cell, **settings}
    return Kind(replace(TRUNCATED.settings, **own), dropout)


def below(kind: Kind) -> set[str]:
    """Names of the parameters whose gradients come by way of the states: all but V and c; a tied V is U too."""
    return set(parameter_table(kind.settings)) - ({"c"} if kind.settings.tied else {"V", "c"})


Check = Callable[..., list[Row]]


def by_coordinates(kind: Kind, gradients: Callable[..., Gradients] = model_gradients) -> list[Row]:
    """Check a small model of a kind, coordinate by coordinate."""
    return check_coordinates(*small_case(kind), gradients=gradients)


def by_directions(kind: Kind, gradients: Callable[..., Gradients] = model_gradients) -> list[Row]:
    """Check the same small model along random directions, of which two are enough to see a fault in these tests."""
    model, window = small_case(kind)
    return check_model(model, np.random.default_rng(1), window, 2, gradients=gradients)


def failed(rows: list[Row]) -> set[str]:
    """Names of the parameters whose row did not pass."""
    return {row.parameter for row in rows if not row.passed}


def whole(full: Parameters) -> Gradients:
    """Gradients that say something of every row."""
    return {name: [(slice(0, len(value)), value)] for name, value in full.items()}


def planted(name: str, fault: Callable[[Array], Array]) -> Callable[[LanguageModel, Window], Gradients]:
    """Return the model's gradients, with a fault put into one parameter's."""

    def gradients(model: LanguageModel, window: Window) -> Gradients:
        full = all_in_full(model_gradients(model, window), model)
        return whole({**full, name: fault(full[name])})

    return gradients


def larger(part: slice = slice(None)) -> Callable[[Array], Array]:
    """Return a fault: some rows of a gradient are a tenth of a percent too large."""

    def fault(gradient: Array) -> Array:
        changed = gradient.copy()
        changed[part] *= 1.001
        return changed

    return fault


BOTH = pytest.mark.parametrize("check", [by_coordinates, by_directions])
EVERY_NAME = pytest.mark.parametrize("name", NAMES)
EVERY_CELL = pytest.mark.parametrize("cell", CELLS)
BOTH_TRUNCATIONS = pytest.mark.parametrize("truncate", [None, 2])


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


@EVERY_CELL
def test_kinds_are_what_train_can_build(cell: str) -> None:
    """Each option with both truncations and, where it matters, with one layer and two; each combination once."""
    kinds = [kind for kind in KINDS if kind.settings.cell == cell]
    assert len(set(kinds)) == len(kinds)
    for truncate in (0, 1, SMALL_STEPS + 3):  # the last is longer than the window
        assert kind_of(truncate, cell=cell) in kinds
    row_width = len(CELLS[cell].reads or CELLS[cell].gates) * TRUNCATED.settings.hidden
    for truncate, layers in itertools.product((None, 2), (1, 2)):
        assert kind_of(truncate, cell=cell, layers=layers) in kinds
        assert kind_of(truncate, True, cell, layers=layers) in kinds
        assert kind_of(truncate, cell=cell, layers=layers, embedding=SMALL_EMBEDDING) in kinds
        assert kind_of(truncate, cell=cell, layers=layers, tied=True) in kinds
    for truncate in (None, 2):
        assert kind_of(truncate, cell=cell, layers=2, tied=True, embedding=SMALL_EMBEDDING) in kinds
    for truncate in (None, 2):
        own = [kind for kind in kinds if kind.settings.truncate == truncate]
        assert any("X1" not in parameter_table(kind.settings) for kind in own)
        assert row_width == TRUNCATED.settings.hidden or kind_of(truncate, cell=cell, embedding=row_width) in own
        assert any(kind.settings.cutoffs and kind.settings.layers == 1 and not kind.settings.tied for kind in own)
        for place in PLACES:
            alone = [kind for kind in own if [name for name in PLACES if getattr(kind.dropout, name)] == [place]]
            assert len(alone) == 1
            assert alone[0].settings.layers == 2 or place in ("inputs", "outputs")
        assert any(all(vars(kind.dropout).values()) and kind.settings.tied and kind.settings.cutoffs for kind in own)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.settings.cell == "relu"], ids=describe)
def test_relus_of_small_models_open_and_close(kind: Kind) -> None:
    """Each relu of each layer is open at one place and closed at another, so that no parameter is without effect."""
    model, window = small_case(kind)
    found, states = [], window.states
    for t in range(SMALL_STEPS):
        (_, states), _ = window.part(slice(t, t + 1), states).losses(model, Workspace())
        found.append(states[:, 0] > 0)  # (L, B, H)
    for share, units in zip(np.mean(found, axis=(0, 2)), kind.settings.units, strict=True):
        assert np.all((share[:units] > 0) & (share[:units] < 1))


def test_window_holds_what_training_meets() -> None:
    """Sentences begin inside the window and with it, one stream has none, targets are ignored, a state comes before."""
    _, window = small_case(TRUNCATED)
    begins = [np.flatnonzero(stream == SENTENCE_END).tolist() for stream in window.inputs.T]
    assert begins == [[], [3], [0, 3]]
    assert (window.targets == IGNORED).sum() == window.targets.size // 8
    assert np.all(window.weights > 0)
    assert np.all(window.states != 0)


@pytest.fixture
def few_kinds(monkeypatch: pytest.MonkeyPatch) -> list[Kind]:
    """Leave three kinds of Elman's network, where it matters that there are several and not which."""
    own = [kind for kind in KINDS if kind.settings.cell == "elman"]
    few = [own[0], own[3], own[-1]]
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


@EVERY_CELL
@pytest.mark.parametrize("settings", [{}, {"layers": 2, "tied": True, "cutoffs": (20, 60)}], ids=["plain", "tied"])
def test_saved_model_passes_along_directions(settings: dict[str, Any], cell: str) -> None:
    """A float32 model of thousands of numbers passes on random words, each parameter alone and all together."""
    generator = np.random.default_rng(0)
    kind = ModelSettings(words=120, hidden=16, cell=cell, truncate=3, **settings)
    model = initialize(kind, generator.integers(1, 100, 120), generator)
    rows = check_model(model, generator, directions=3)
    assert [row.parameter for row in rows] == [*parameter_table(kind), "all"]
    assert all(row.passed and row.coordinates == 3 for row in rows)
    assert max(row.worst_error for row in rows) < TOLERANCE / 2
    assert all(value.dtype == np.float32 for value in model.parameters.values())


def test_no_step_along_a_direction_crosses_a_kink(monkeypatch: pytest.MonkeyPatch) -> None:
    """A relu model of 200 units passes because steps leave its relus as they are; with the usual step it would not."""
    model = initialize(ModelSettings(50, 200, "relu", truncate=2), np.ones(50), np.random.default_rng(0))
    rows = check_model(model, np.random.default_rng(1), directions=2)
    assert not failed(rows)
    monkeypatch.setattr(referee, "_smooth_step", lambda model, window, direction, step: step)
    assert failed(check_model(model, np.random.default_rng(1), directions=2)) >= {"W1", "b1"}


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
@pytest.mark.parametrize("kind", [TRUNCATED, kind_of(None, True)], ids=describe)
def test_a_tenth_of_a_percent_is_caught(check: Check, name: str, kind: Kind) -> None:
    """A gradient that is 0.1% too large in one parameter fails there, and nowhere else."""
    rows = check(kind, planted(name, larger()))
    assert failed(rows) - {"all"} == {name}
    assert next(row for row in rows if row.parameter == name).worst_error == pytest.approx(0.001, rel=0.01)


DEEP = {"embedding": SMALL_EMBEDDING, "layers": 2, "cutoffs": (2, 5, 6), "dropout": EVERYWHERE}
DEEP_KINDS = [kind_of(2, cell=cell, **DEEP) for cell in CELLS]
DEEP_KINDS += [kind_of(None, cell=cell, **{**DEEP, "embedding": None, "tied": True}) for cell in CELLS]


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in DEEP_KINDS for name in parameter_table(kind.settings)],
    ids=lambda value: value if isinstance(value, str) else describe(value),
)
def test_a_tenth_of_a_percent_is_caught_in_any_layer(kind: Kind, name: str) -> None:
    """So does each parameter of two layers of each cell: X, W and b of both, tables that are tied or not, and c."""
    assert failed(by_directions(kind, planted(name, larger()))) - {"all"} == {name}


@BOTH
@BOTH_TRUNCATIONS
@pytest.mark.parametrize(
    ("cell", "name", "part"),
    [("gru", "b1", slice(9, 12))]  # that of q, PyTorch's b_hn: it is all that a fourth part of b is for
    + [("gru", "W1", slice(6, 9)), ("gru", "X1", slice(0, 3))]
    + [("lstm", name, slice(6, 9)) for name in ("X1", "W1", "b1")],  # the forget gate's
)
def test_one_wrong_gate_is_caught(check: Check, cell: str, name: str, part: slice, truncate: int | None) -> None:
    """A gradient that is 0.1% too large in the rows of one gate alone fails, and the row says where."""
    rows = check(kind_of(truncate, cell=cell), planted(name, larger(part)))
    assert failed(rows) - {"all"} == {name}
    row = next(row for row in rows if row.parameter == name)
    assert check is by_directions or part.start <= row.where[0] < part.stop


@BOTH_TRUNCATIONS
@pytest.mark.parametrize(("cell", "gate"), [(cell, gate) for cell in CELLS for gate in CELLS[cell].gates])
def test_a_wrong_slope_is_caught(cell: str, gate: str, truncate: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slope of one gate that is 0.1% too large fails in b, which has a part for each gate, and not above the cell."""
    honest, part = CELLS[cell], CELLS[cell].part(gate, TRUNCATED.settings.hidden)

    def slopes(z: Array, *arrays: Array) -> None:
        honest.slopes(z, *arrays)
        z[..., part] *= 1.001

    monkeypatch.setitem(CELLS, cell, honest._replace(slopes=slopes))
    wrong = failed(by_coordinates(kind_of(truncate, cell=cell)))
    assert "b1" in wrong
    assert not wrong & {"V", "c"}


@BOTH
@BOTH_TRUNCATIONS
@pytest.mark.parametrize("layers", [1, 2])
def test_a_relu_that_is_open_on_the_wrong_side_is_caught(
    check: Check, layers: int, truncate: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors that pass where z is below zero, and stop where it is above, fail."""
    honest = CELLS["relu"]

    def slopes(z: Array, *arrays: Array) -> None:
        honest.slopes(z, *arrays)
        np.subtract(1, z, out=z)

    monkeypatch.setitem(CELLS, "relu", honest._replace(slopes=slopes))
    kind = kind_of(truncate, cell="relu", layers=layers)
    assert failed(check(kind)) - {"all"} == below(kind)


@EVERY_NAME
def test_one_wrong_coordinate_is_caught_and_named(name: str) -> None:
    """A single number that is 0.1% too large fails, be it the smallest of its parameter, and the row says where."""
    model, window = small_case(TRUNCATED)
    honest = all_in_full(model_gradients(model, window), model)[name]
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
@pytest.mark.parametrize(("truncate", "wrong"), [(0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (2, None), (None, 2), (9, 2)])
@pytest.mark.parametrize("settings", [{}, {"cell": "lstm", "layers": 2}], ids=["elman", "lstm, 2 layers"])
def test_wrong_truncation_is_caught(
    check: Check, truncate: int | None, wrong: int | None, settings: dict[str, Any]
) -> None:
    """A gradient that reaches a step too far, or not far enough, fails in each parameter below the states."""

    def gradients(model: LanguageModel, window: Window) -> Gradients:
        return model_gradients(LanguageModel(replace(model.settings, truncate=wrong), model.parameters), window)

    kind = kind_of(truncate, **settings)
    assert failed(check(kind, gradients)) - {"all"} == below(kind)


@BOTH
@pytest.mark.parametrize("name", ["W1", "V"])
def test_transposed_gradient_is_caught(check: Check, name: str) -> None:
    """A transposed dW has the right shape, and fails; a transposed dV has not even that."""
    rows = check(TRUNCATED, planted(name, np.transpose))
    assert failed(rows) - {"all"} == {name}


def plain(kind: Kind) -> bool:
    """Say whether a kind has neither dropout nor tables of words of another shape: masks of states meet neither."""
    settings = kind.settings
    return kind.dropout == NO_DROPOUT and not (settings.embedding or settings.tied or settings.cutoffs)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if plain(kind) and kind.settings.truncate != 0], ids=describe)
def test_missing_mask_is_caught(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient that runs on across the beginning of a sentence fails, unless the state does so too.

    Relus that are shut there stop it anyway: of a few models one parameter or another hears of it.
    """
    honest = mathematics.Walk.prepare_back

    def prepare_back(self: mathematics.Walk, steps: slice) -> None:
        honest(self, steps)
        self.keep[...] = 1

    monkeypatch.setattr(mathematics.Walk, "prepare_back", prepare_back)
    if kind.settings.cell == "relu" and not kind.settings.carry_state:
        generator = np.random.default_rng(0)
        cases = (small_case(kind, seed) for seed in range(3))
        wrong = [failed(check_model(model, generator, window, 2)) for model, window in cases]
        assert set() < set().union(*wrong) - {"all"} <= below(kind)
    else:
        expected = set() if kind.settings.carry_state else below(kind)
        assert failed(by_directions(kind)) - {"all"} == expected


@BOTH_TRUNCATIONS
@EVERY_CELL
@pytest.mark.parametrize("place", ["rows", "s1", "s2", "W1", "W2"])
def test_forgotten_masks_are_caught(place: str, cell: str, truncate: int | None) -> None:
    """A gradient that runs on through a number that dropout zeroed fails, in all parameters that it passes."""
    kind = kind_of(truncate, cell=cell, dropout=EVERYWHERE, layers=2, embedding=SMALL_EMBEDDING)

    def gradients(model: LanguageModel, window: Window) -> Gradients:
        masks = {name: mask.copy() for name, mask in window.masks.items()}
        _, backward = window._replace(masks=masks).losses(model, Workspace())
        masks[place][...] = 1
        return backward(window.weights)

    passed_by = {"rows": {"U"}, "s1": {"U", "X1", "W1", "b1"}, "s2": below(kind), "W1": {"W1"}, "W2": {"W2"}}
    assert failed(by_directions(kind, gradients)) - {"all"} == passed_by[place]


def test_masks_belong_to_the_window() -> None:
    """A window in pieces has the masks of the whole, and without them its losses are others."""
    model, window = small_case(kind_of(None, dropout=EVERYWHERE))
    (whole, after), _ = window.losses(model, Workspace())
    (first, state), _ = window.part(slice(0, 3), window.states).losses(model, Workspace())
    (second, state), _ = window.part(slice(3, None), state).losses(model, Workspace())
    np.testing.assert_allclose(np.concatenate((first, second)), whole, rtol=1e-13)
    np.testing.assert_allclose(state, after, rtol=1e-13)
    assert not np.allclose(whole, window._replace(masks={}).losses(model, Workspace())[0][0])


@BOTH
@BOTH_TRUNCATIONS
@EVERY_CELL
def test_a_tied_gradient_without_its_input_part_is_caught(check: Check, cell: str, truncate: int | None) -> None:
    """Of a tied table, the gradient as an output table alone fails; so does that as an input table alone."""
    cutoffs = (2, 5, 6)
    kind = kind_of(truncate, cell=cell, tied=True, cutoffs=cutoffs)

    def parts(model: LanguageModel, window: Window) -> tuple[Gradients, list[Array]]:
        """Give the gradients, and the two parts of V's: those of a model that has the rows twice."""
        table = {**model.parameters, "U": model.parameters["V"][len(cutoffs) :].copy()}
        apart = LanguageModel(replace(model.settings, tied=False), table)
        found, honest = all_in_full(model_gradients(apart, window), apart), model_gradients(model, window)
        two = [found["V"], np.concatenate((np.zeros((len(cutoffs), 3)), found["U"]))]
        np.testing.assert_allclose(sum(two), all_in_full(honest, model)["V"], atol=1e-14)
        return honest, two

    def as_outputs(model: LanguageModel, window: Window) -> Gradients:
        honest, (outputs, _) = parts(model, window)
        return {**honest, **whole({"V": outputs})}

    def as_inputs(model: LanguageModel, window: Window) -> Gradients:
        honest, (_, inputs) = parts(model, window)
        return {**honest, **whole({"V": inputs})}

    assert failed(check(kind, as_outputs)) - {"all"} == {"V"}
    assert failed(check(kind, as_inputs)) - {"all"} == {"V"}


@BOTH_TRUNCATIONS
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(
    ("cell", "lost"),
    [("gru", [0]), ("lstm", [0, 1]), ("lstm", [1]), ("lstm", [0])],
    ids=["gru: s to s", "lstm: both", "lstm: c to c", "lstm: s to c"],
)
def test_a_lost_path_beside_w_is_caught(
    cell: str, lost: list[int], layers: int, truncate: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that goes back through W only, and not from state to state past it, fails in all that lies below."""
    honest = CELLS[cell]

    def slopes(z: Array, before: Array, after: Array, carry: Array) -> None:
        honest.slopes(z, before, after, carry)
        carry[lost] = 0

    monkeypatch.setitem(CELLS, cell, honest._replace(slopes=slopes))
    kind = kind_of(truncate, cell=cell, layers=layers)
    assert failed(by_coordinates(kind)) == below(kind)


@BOTH
@EVERY_CELL
@pytest.mark.parametrize("truncate", [1, 2])
def test_layers_truncated_one_by_one_are_caught(
    check: Check, truncate: int, cell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors that reach K steps back in each layer by itself, 2 K in all, are another sum, and fail."""
    honest = mathematics.by_diagonals

    def layer_by_layer(ds: Array, ways: list[Any], truncate: int) -> None:
        for number, way in reversed(list(enumerate(ways))):
            honest(ds, [way], truncate)
            ds = way.dz[..., way.reads] @ way.layer.X if number else ds

    monkeypatch.setattr(mathematics, "by_diagonals", layer_by_layer)
    one, two = (kind_of(truncate, cell=cell, layers=layers) for layers in (1, 2))
    assert not failed(check(one))
    assert failed(check(two)) - {"all"} == below(one)


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


# The command


def test_command_prints_a_table_and_succeeds(few_kinds: list[Kind]) -> None:
    """A row for each parameter of each kind on standard output, and the worst error last."""
    result = CliRunner().invoke(command, [])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    checked = sum(len(parameter_table(kind.settings)) for kind in few_kinds)
    assert len([line for line in lines if line.endswith(" ok")]) == checked
    assert lines[0].split()[:3] == ["parameter", "shape", "coordinates"]
    assert "worst relative error" in lines[-1]
    assert "Traceback" not in result.output


def test_command_fails_with_exit_code_1(few_kinds: list[Kind], monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong derivative in model.py itself is reported parameter by parameter, and the command exits 1."""
    elman = CELLS["elman"]

    def backward(ds: Array, slopes: Array, carry: Array, delta: Array) -> None:
        elman.backward(ds, slopes, carry, delta)
        delta *= 1.001

    monkeypatch.setitem(CELLS, "elman", elman._replace(backward=backward))
    result = CliRunner().invoke(command, [])
    assert result.exit_code == 1
    failures = [line for line in result.stdout.splitlines() if " FAIL at (" in line]
    assert len(failures) == sum(len(below(kind)) for kind in few_kinds)


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
    broken = elman._replace(backward=lambda ds, slopes, carry, delta: delta.fill(np.nan))
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
