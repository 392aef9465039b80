"""docs/derivation.md against model.py: the same equations, the same names, and numbers that anyone can compute again.

The worked example is computed twice: by loops over single components, written here from the text alone, and by
`rnnlm.model`. Its gradients are also held against differences of the loss, which know nothing of the chain rule.
"""

import ast
import functools
import io
import math
import re
import tokenize
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import in_full
from rnnlm import model
from rnnlm.model import (
    CELLS,
    Gradient,
    LanguageModel,
    Layer,
    ModelSettings,
    Optimizer,
    Workspace,
    initialize,
    mean_weights,
    recur,
    softmax_loss,
)

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs" / "derivation.md").read_text(encoding="utf-8")
SOURCE = Path(model.__file__).read_text(encoding="utf-8")
LEGEND = ast.get_docstring(ast.parse(SOURCE)) or ""

TUTORIAL_NAMES = {"bptt", "bptt_step", "bptt_truncate", "delta_o", "delta_t", "dLdU", "dLdV", "dLdW"}
# Code spans that name neither a file nor something that model.py defines by name.
OTHER_SPANS = {
    "</s>",
    "rnnlm gradcheck",
    "rnnlm gradflow",
    "rnnlm trace --tutorial",
    "--at 3 2",
    "--lr",
    "X1",
    "W1",
    "b1",
    "X2",
    "W2",
    "b2",
    "b_hn",
}
LAST = 27  # the number of the last equation

Values = dict[str, np.ndarray]

# ---------------------------------------------------------------------------------------------------------------------
# Reading the document


def section(title: str) -> str:
    """Return the text under the heading that contains `title`, up to the next heading of its kind."""
    found = re.search(rf"^## [^\n]*{re.escape(title)}[^\n]*\n(.*?)(?=^## |\Z)", DOCUMENT, re.M | re.S)
    assert found, f"derivation.md has no section about {title!r}"
    return found[1]


def without_fences(text: str) -> str:
    """Drop fenced blocks: pictures and printed numbers."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def display_formulas() -> list[str]:
    """Return the formulas that stand on lines of their own."""
    return re.findall(r"^\$\$\n(.*?)\n\$\$$", without_fences(DOCUMENT), re.M | re.S)


def inline_formulas() -> list[str]:
    """Return the formulas that stand within sentences and tables."""
    prose = re.sub(r"^\$\$\n.*?\n\$\$$", "", without_fences(DOCUMENT), flags=re.M | re.S)
    return re.findall(r"\$([^$]+)\$", re.sub(r"`[^`]+`", "", prose))


def table(heading: str) -> list[list[str]]:
    """Return the cells below the headers of the tables whose first column is called `heading`."""
    found = re.findall(rf"^\| {re.escape(heading)} \|.*\n\| *-.*\n((?:\|.*\n)+)", DOCUMENT, re.M)
    assert found, f"derivation.md has no table that begins with {heading!r}"
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in "".join(found).splitlines()]


def tagged_equations() -> dict[int, str]:
    """Return the numbered equations of the document, written as the legend of model.py writes them."""
    equations: dict[int, str] = {}
    for formula in display_formulas():
        for number in re.findall(r"\\tag\{(\d+)\}", formula):
            assert int(number) not in equations, f"equation ({number}) stands twice in derivation.md"
            equations[int(number)] = plain(re.sub(r"\\tag\{\d+\}", "", formula))
    return equations


def plain(latex: str) -> str:
    """Write a formula in LaTeX as the legend writes it, without blanks."""
    latex = re.sub(r"\\frac\{\\partial ([^{}]*(?:\{[^{}]*\})?)\}\{\\partial ([^{}]*)\}", r"d\1/d\2", latex)
    latex = re.sub(r"\\(?:text|mathrm)\{([^{}]*)\}", r"\1", latex.replace(r"\mathrel{+}=", "+="))
    for command, written in ((r"\odot", "*"), (r"\le", "<="), (r"\quad", "")):
        latex = re.sub(re.escape(command) + r"(?![A-Za-z])", written, latex)
    return re.sub(r"[\\\s]", "", latex)  # \sum_t becomes sum_t, \delta delta, \log log, \tanh tanh


def legend_equations() -> dict[int, str]:
    """Return the numbered equations of model.py's docstring without blanks, remarks and shapes."""
    equations = {}
    for number, line in re.findall(r"^ +\((\d+)\) +(.*)$", LEGEND, re.M):
        first = re.split(r"(?<![,\s])\s{2,}|;", line)[0]  # what follows a comma belongs to the formula
        equations[int(number)] = re.sub(r"\s", "", first)
    return equations


# ---------------------------------------------------------------------------------------------------------------------
# The same equations


def test_every_equation_of_the_legend_is_derived_and_says_the_same():
    """The eleven equations of model.py's docstring are the first of derivation.md, letter for letter."""
    tagged = tagged_equations()
    assert list(tagged) == list(range(1, LAST + 1)), "numbers ascend on the page, without a gap"
    assert {number: tagged[number] for number in range(1, 12)} == legend_equations()


def test_the_letters_are_those_of_the_legend():
    """Each letter that model.py explains at its beginning means the same thing in derivation.md."""
    found = re.search(r"Letters, everywhere: (.*?)\.\n", LEGEND, re.S)
    assert found
    written = " ".join(section("The model").replace("$", "").split())
    for letter in found[1].replace("*", " ").split(","):
        assert " ".join(letter.split()) in written, f"derivation.md does not say {letter!r}"


def test_every_equation_that_the_text_refers_to_exists():
    """No sentence refers to an equation by a number that no equation has."""
    prose = re.sub(r"\$\$.*?\$\$|\$[^$]+\$", "", without_fences(DOCUMENT), flags=re.S)
    referred = {int(number) for number in re.findall(r"\((\d{1,2})\)", prose)}
    assert referred <= set(tagged_equations())


def test_the_sources_of_the_legend_are_named():
    """Whoever is named as a source in model.py has a line among the sources of derivation.md."""
    found = re.search(r"^References: (.*?)\n\n", LEGEND, re.M | re.S)
    assert found
    sources = section("Sources")
    for name in re.findall(r"([A-Z][a-z]+)(?: and [A-Z][a-z]+| et al\.)? \(\d{4}\)", found[1]):
        assert name in sources


def test_whoever_is_named_with_a_year_is_among_the_sources():
    """Each author and year in the text is an entry of the list at its end."""
    text, sources = without_fences(DOCUMENT).split("## Sources")
    others = r"(?: et al\.| and [A-Z][a-z]+|, [A-Z][a-z]+ and [A-Z][a-z]+)?"
    named = re.findall(rf"([A-Z][a-z]+){others} \(?((?:19|20)\d\d)\b", " ".join(text.split()))
    assert len(named) > 8
    for author, year in named:
        assert re.search(rf"{author}[^()]*\({year}\)", sources), f"{author} ({year})"


# ---------------------------------------------------------------------------------------------------------------------
# The same names


@functools.cache
def functions() -> dict[ast.FunctionDef, str]:
    """Return the functions of model.py with their names, methods as Class.method."""
    tree = ast.parse(SOURCE)
    names = {node: node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    for owner in ast.walk(tree):
        if isinstance(owner, ast.ClassDef):
            names |= {node: f"{owner.name}.{node.name}" for node in owner.body if isinstance(node, ast.FunctionDef)}
    return names


def functions_around(line: int) -> set[str]:
    """Return the functions of model.py, methods as Class.method, in whose body a line stands."""
    return {name for node, name in functions().items() if node.lineno <= line <= (node.end_lineno or node.lineno)}


@functools.cache
def commented_equations() -> list[tuple[int, int]]:
    """Return (line, equation) for each equation that a comment in the body of model.py names."""
    tokens = tokenize.generate_tokens(io.StringIO(SOURCE).readline)
    comments = [(token.start[0], token.string) for token in tokens if token.type == tokenize.COMMENT]
    return [(line, int(number)) for line, comment in comments for number in re.findall(r"\((\d+)\)", comment)]


def places() -> dict[int, set[str]]:
    """Return the functions that derivation.md names as the place where each equation is computed."""
    rows = table("equation")
    assert [number for number, *_ in rows] == [f"({number})" for number in range(1, LAST + 1)]
    return {int(number.strip("()")): set(re.findall(r"`([\w.]+)`", where)) for number, where, *_ in rows}


@pytest.mark.parametrize("number", range(1, LAST + 1))
def test_each_equation_is_named_where_it_is_computed(number):
    """Each function that the document names for an equation bears its number in a comment."""
    named = places()[number]
    assert named, f"derivation.md does not say where ({number}) is computed"
    commented = [functions_around(line) for line, equation in commented_equations() if equation == number]
    for name in named:
        assert any(name in around for around in commented), (
            f"model.py: no comment in {name} says that ({number}) is computed there"
        )


def test_each_comment_with_a_number_is_where_the_document_says():
    """Each comment of model.py that names an equation stands in a function that the document names for it."""
    for line, number in commented_equations():
        around = functions_around(line)
        assert around & places()[number], f"derivation.md does not say that ({number}) is computed in {around}"


def names_in_model() -> set[str]:
    """Return every name that model.py defines: functions, classes, arguments, fields and variables."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(SOURCE)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def test_every_name_in_code_letters_exists():
    """What derivation.md sets in code letters is a name of model.py, a file, or a name of the tutorial's listing."""
    files = {path.name for folder in ("src/rnnlm", "docs", "tests") for path in (ROOT / folder).iterdir()}
    known = names_in_model() | TUTORIAL_NAMES
    for span in re.findall(r"`([^`\n]+)`", without_fences(DOCUMENT)):
        if span in OTHER_SPANS or Path(span).name in files:
            continue
        assert re.fullmatch(r"[\w.]+", span), f"derivation.md sets {span!r} in code letters"
        for name in span.split("."):
            assert name in known, f"derivation.md names {span!r}, which model.py does not have"


def test_no_line_numbers():
    """The document points at functions, which keep their names, and never at lines, which move."""
    assert not re.search(r"\blines? \d|\.py:\d|#L\d", DOCUMENT)


def test_links_lead_somewhere():
    """Every relative link of the document leads to a file of the repository."""
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", DOCUMENT)
    assert targets
    for target in targets:
        assert target.startswith("https://") or (ROOT / "docs" / target).exists()


def test_formulas_survive_markdown():
    """No formula holds what Markdown reads as emphasis, an escape or a link before the formula is set."""
    formulas = inline_formulas() + display_formulas()
    assert len(formulas) > 50
    for formula in formulas:
        assert not re.search(r"\\[^A-Za-z]", formula), f"Markdown eats the backslash in {formula!r}"
        assert not re.search(r"(?<![A-Za-z0-9])_|\*|\]\(|<|>|&|\|", formula), f"Markdown may read {formula!r}"
        assert formula.count("{") == formula.count("}"), formula
    for formula in inline_formulas():
        assert "\n" not in formula, f"GitHub sets no formula that is broken over two lines: {formula!r}"
        assert formula == formula.strip(), f"GitHub wants no blank inside the dollars of {formula!r}"


# ---------------------------------------------------------------------------------------------------------------------
# The worked example


def printed(title: str) -> dict[str, tuple[np.ndarray, int]]:
    """Return the numbers printed in a section by name, with the number of decimals printed."""
    numbers = {}
    for block in re.findall(r"^```text\n(.*?)^```$", section(title), re.M | re.S):
        for line in block.splitlines():
            name, _, text = (part.strip() for part in line.rpartition("="))
            assert name, line
            assert name not in numbers, f"{name} is printed twice"
            rows = [[float(number) for number in row.split()] for row in text.split("|")]
            decimals = max(len(number.partition(".")[2]) for number in text.replace("|", " ").split())
            numbers[name] = (np.array(rows if len(rows) > 1 else rows[0]), decimals)
    return numbers


GIVEN = ("U", "W", "b", "V", "c")
MODEL_NAMES = {"U": "U", "W": "W1", "b": "b1", "V": "V", "c": "c"}
NUMBERS = printed("worked example")
PARAMETERS: Values = {name: NUMBERS[name][0] for name in GIVEN}
INPUTS, TARGETS = ([int(word) for word in NUMBERS[name][0]] for name in ("x", "y"))
STEPS = range(1, len(INPUTS) + 1)  # counted from 1, as in the text
NUDGE = 0.01  # by which the text moves W_12


def forward_by_loops(
    parameters: Values, start: int = 1, before: list[float] | None = None
) -> tuple[dict[int, list[float]], ...]:
    """Compute (1) to (4), one component at a time, from step `start` on, the state before which is `before`."""
    U, W, b, V, c = (parameters[name] for name in GIVEN)
    units, words = range(len(b)), range(len(c))
    z: dict[int, list[float]] = {}
    s = {start - 1: before or [0.0 for _ in units]}
    p: dict[int, list[float]] = {}
    E: dict[int, list[float]] = {}
    for t in range(start, len(INPUTS) + 1):
        x_t, y_t = INPUTS[t - 1], TARGETS[t - 1]
        z[t] = [U[x_t, i] + sum(W[i, j] * s[t - 1][j] for j in units) + b[i] for i in units]
        s[t] = [math.tanh(z[t][i]) for i in units]
        exponentials = [math.exp(sum(V[m, i] * s[t][i] for i in units) + c[m]) for m in words]
        p[t] = [exponentials[m] / sum(exponentials) for m in words]
        E[t] = [-math.log(p[t][y_t])]
    return z, s, p, E


def loss_by_loops(parameters: Values) -> float:
    """Compute L."""
    return sum(E[0] for E in forward_by_loops(parameters)[3].values()) / len(INPUTS)


def example_by_loops(truncate: int | None = None, parameters: Values = PARAMETERS) -> Values:
    """Compute every number of the worked example, one component at a time."""
    _, W, b, V, c = (parameters[name] for name in GIVEN)
    units, words, N = range(len(b)), range(len(c)), len(INPUTS)
    z, s, p, E = forward_by_loops(parameters)
    found: dict[str, object] = {}
    gradients = {name: np.zeros_like(parameters[name]) for name in GIVEN}
    for t in STEPS:
        found |= {f"z_{t}": z[t], f"s_{t}": s[t], f"p_{t}": p[t], f"E_{t}": E[t]}
        error = [p[t][m] - (m == TARGETS[t - 1]) for m in words]  # (5)
        ds = [sum(V[m, i] * error[m] for m in words) for i in units]  # (7)
        found |= {f"p_{t} - 1_y{t}": error, f"dE_{t}/ds_{t}": ds}
        for m in words:
            gradients["c"][m] += error[m] / N
            for i in units:
                gradients["V"][m, i] += error[m] * s[t][i] / N  # (6)
        delta = [ds[i] * (1 - s[t][i] ** 2) for i in units]  # (8)
        for k in range(t, 0, -1):
            if truncate is not None and t - k > truncate:
                break
            found[f"delta_{t}({k})"] = delta
            found[f"delta_{t}({k}) s_{k - 1}'"] = [[delta[i] * s[k - 1][j] for j in units] for i in units]
            for i in units:
                gradients["U"][INPUTS[k - 1], i] += delta[i] / N  # (11)
                gradients["b"][i] += delta[i] / N
                for j in units:
                    gradients["W"][i, j] += delta[i] * s[k - 1][j] / N  # (10)
            delta = [sum(W[m, i] * delta[m] for m in units) * (1 - s[k - 1][i] ** 2) for i in units]  # (9)
    found["L"] = [loss_by_loops(parameters)]
    found["perplexity"] = [math.exp(loss_by_loops(parameters))]
    return {name: np.array(value) for name, value in found.items()} | {f"d{name}": gradients[name] for name in GIVEN}


def example_by_model(truncate: int | None = None) -> Values:
    """Compute every number of the worked example with rnnlm.model, in float64."""
    work, (U, W, b, V, c) = Workspace(), (PARAMETERS[name] for name in GIVEN)
    language_model = example_model(PARAMETERS, truncate)
    x, y = np.array(INPUTS)[:, None], np.array(TARGETS)[:, None]
    keep = np.ones(x.shape, bool)
    found: Values = {}
    state = language_model.start(1)
    for t in STEPS:
        # The gradient of E_t alone, with respect to what each step reads: its rows are delta_t(k).
        layers, states = [Layer(None, W, b)], language_model.start(1)
        (s, _), back = recur(U[x], keep, states, layers, CELLS["elman"], truncate, Workspace())
        s = np.concatenate((np.zeros((1, len(b))), s[:, 0]))
        loss, softmax_backward = softmax_loss(s[[t]], y[t - 1], V, c, (), work)
        dS, _, dc = softmax_backward(np.ones(1))
        log_p, state = language_model.step(x[t - 1], state, work)
        found |= {f"z_{t}": np.arctanh(s[t]), f"s_{t}": s[t], f"p_{t}": np.exp(log_p[0]), f"E_{t}": loss}
        found |= {f"p_{t} - 1_y{t}": in_full(dc, c), f"dE_{t}/ds_{t}": dS[0].copy()}
        ds = np.zeros((len(x), 1, len(b)))
        ds[t - 1] = dS
        deltas = back(ds)[0]
        for k in range(t, 0, -1):
            delta = deltas[k - 1, 0].copy()
            found |= {f"delta_{t}({k})": delta, f"delta_{t}({k}) s_{k - 1}'": np.outer(delta, s[k - 1])}
    (losses, _), backward = language_model.losses(x, y, language_model.start(1), work)
    gradients = backward(mean_weights(y))
    found |= {f"d{name}": in_full(gradients[MODEL_NAMES[name]], PARAMETERS[name]) for name in GIVEN}
    return found | {"L": np.array([losses.mean()]), "perplexity": np.exp([losses.mean()])}


def example_model(parameters: Values, truncate: int | None = None) -> LanguageModel:
    """Make the model of the worked example."""
    settings = ModelSettings(words=len(parameters["c"]), hidden=len(parameters["b"]), truncate=truncate)
    return LanguageModel(settings, {MODEL_NAMES[name]: array.copy() for name, array in parameters.items()})


def with_extras(example: Callable[[int | None], Values], loss: Callable[[float], float]) -> Values:
    """Add what the text says of truncation and of the check by a difference."""
    found = example(None)
    for K in (0, 1):
        found |= {f"d{name} when K = {K}": example(K)[f"d{name}"] for name in ("U", "W", "b")}
    above, below = loss(NUDGE), loss(-NUDGE)
    found |= {"L with W_12 + 0.01": np.array([above]), "L with W_12 - 0.01": np.array([below])}
    return found | {"their difference / 0.02": np.array([(above - below) / (2 * NUDGE)])}


def nudged(amount: float) -> Values:
    """Return the parameters with W_12 moved."""
    W = PARAMETERS["W"].copy()
    W[0, 1] += amount
    return {**PARAMETERS, "W": W}


def loss_by_model(amount: float) -> float:
    """Compute L with rnnlm.model after moving W_12."""
    language_model = example_model(nudged(amount))
    inputs, targets = np.array(INPUTS)[:, None], np.array(TARGETS)[:, None]
    (losses, _), _ = language_model.losses(inputs, targets, language_model.start(1), Workspace())
    return float(losses.mean())


COMPUTATIONS = {
    "loops": lambda: with_extras(example_by_loops, lambda amount: loss_by_loops(nudged(amount))),
    "model": lambda: with_extras(example_by_model, loss_by_model),
}


@pytest.mark.parametrize("way", COMPUTATIONS)
def test_the_worked_example_is_right_to_its_last_digit(way):
    """Each number printed in the worked example is what the loops and what rnnlm.model compute, correctly rounded."""
    computed = COMPUTATIONS[way]()
    assert "dW" in computed
    for name, (value, decimals) in NUMBERS.items():
        if name in (*GIVEN, "x", "y"):
            continue
        assert decimals >= 4, f"{name} is printed to fewer than four decimals"
        expected = computed[name]
        assert value.shape == expected.shape, name
        np.testing.assert_allclose(value, expected, rtol=0, atol=0.5000001 * 10.0**-decimals, err_msg=name)


def test_the_worked_example_leaves_nothing_out():
    """Every z, s, p, delta_t(k), every term of dW and every gradient is printed."""
    assert set(COMPUTATIONS["loops"]()) | {*GIVEN, "x", "y"} == set(NUMBERS)


def test_sums_written_out_in_the_text_are_right():
    """Where the text works a number out by hand, both sides of the equation are equal to five decimals."""
    sums = [formula for formula in inline_formulas() if re.fullmatch(r"(?:[\d.()^= +-]|\\times)+", formula)]
    sums = [formula.replace(r"\times", "*").replace("^", "**") for formula in sums if "=" in formula]
    assert len(sums) == 3
    for left, right in (formula.split("=") for formula in sums):
        assert eval(left) == pytest.approx(float(right), abs=1e-5)  # digits and operators only, by the pattern above


def test_the_worked_example_agrees_with_differences_of_the_loss():
    """Each coordinate of the five gradients is the slope of L, measured without any derivative."""
    found = example_by_loops()
    for name in GIVEN:
        for index in np.ndindex(PARAMETERS[name].shape):
            losses = []
            for step in (1e-5, -1e-5):
                moved = {key: array.copy() for key, array in PARAMETERS.items()}
                moved[name][index] += step
                losses.append(loss_by_loops(moved))
            assert found[f"d{name}"][index] == pytest.approx((losses[0] - losses[1]) / 2e-5, abs=1e-9)


@pytest.mark.parametrize("K", [0, 1])
def test_truncation_holds_an_earlier_state_constant(K):
    """The truncated gradient of E_t is its exact slope when the state K + 1 steps back does not move."""
    _, states, _, _ = forward_by_loops(PARAMETERS)
    found = example_by_loops(K)

    def loss(parameters: Values) -> float:
        starts = [(t, max(1, t - K)) for t in STEPS]
        return sum(forward_by_loops(parameters, k, states[k - 1])[3][t][0] for t, k in starts) / len(INPUTS)

    for name in GIVEN:
        for index in np.ndindex(PARAMETERS[name].shape):
            losses = []
            for step in (1e-5, -1e-5):
                moved = {key: array.copy() for key, array in PARAMETERS.items()}
                moved[name][index] += step
                losses.append(loss(moved))
            assert found[f"d{name}"][index] == pytest.approx((losses[0] - losses[1]) / 2e-5, abs=1e-9)


# ---------------------------------------------------------------------------------------------------------------------
# What the text says of all errors at once, and of long distances


@pytest.mark.parametrize("K", [None, 0, 1, 4, 30])
def test_the_three_ways_of_adding_up_are_one_sum(K):
    """By rows (the double loop), by diagonals (lags), and, untruncated, by columns: the same dz; `recur` gives it."""
    generator = np.random.default_rng(5)
    T, H = 12, 3
    W, x, ds = generator.normal(size=(H, H)), generator.normal(size=(T, H)), generator.normal(size=(T, H))
    remembered = np.ones(T)
    remembered[[0, 5]] = 0  # two sentences
    s = np.zeros((T + 1, H))  # s[k + 1] is the state of step k; row 0 is the zero before the first
    for k in range(T):
        s[k + 1] = np.tanh(x[k] + W @ (remembered[k] * s[k]))
    slope = 1 - s[1:] ** 2

    by_rows = np.zeros((T, H))
    for t in range(T):
        delta = ds[t] * slope[t]
        for k in range(t, -1 if K is None else max(0, t - K) - 1, -1):
            by_rows[k] += delta
            delta = remembered[k] * (W.T @ delta) * (slope[k - 1] if k else 0)
    by_diagonals = np.zeros((T, H))
    lag_deltas = ds * slope  # row t holds delta_t(t - lag)
    for lag in range(T if K is None else min(K + 1, T)):
        by_diagonals[: T - lag] += lag_deltas[lag:]
        for t in range(lag + 1, T):
            lag_deltas[t] = remembered[t - lag] * (W.T @ lag_deltas[t]) * slope[t - lag - 1]
    np.testing.assert_allclose(by_diagonals, by_rows, atol=1e-12)
    if K is None:
        by_columns = np.zeros((T, H))
        from_later = np.zeros(H)
        for k in reversed(range(T)):
            by_columns[k] = (ds[k] + from_later) * slope[k]
            from_later = remembered[k] * (W.T @ by_columns[k])
        np.testing.assert_allclose(by_columns, by_rows, atol=1e-12)

    layers, cell = [Layer(None, W, np.zeros(H))], CELLS["elman"]
    _, backward = recur(x[:, None], remembered[:, None] == 1, np.ones((1, 1, 1, H)), layers, cell, K, Workspace())
    dz, gradients = backward(ds[:, None])
    np.testing.assert_allclose(dz[:, 0], by_rows, atol=1e-12)
    expected = sum(np.outer(by_rows[k], remembered[k] * s[k]) for k in range(T))
    np.testing.assert_allclose(in_full(gradients["W1"], W), expected, atol=1e-12)


@pytest.mark.parametrize("K", [0, 1, 2, 4, 30])
def test_a_truncation_costs_as_many_products_as_the_page_says(K):
    """K lags cost K products with W, no more; without truncation there are T - 1 of them, one for each arrow back."""
    T, H = 6, 3
    calls = []

    class Counted(np.ndarray):
        def __rmatmul__(self, other):
            calls.append(np.shape(other))
            return np.asarray(other) @ np.asarray(self)

    W = np.random.default_rng(1).normal(size=(H, H)).view(Counted)
    for truncate, products in ((K, min(K, T - 1)), (None, T - 1)):
        layers = [Layer(None, W, np.zeros(H))]
        arguments = (np.ones((T, 1, H)), np.ones((T, 1), bool), np.zeros((1, 1, 1, H)), layers, CELLS["elman"])
        _, backward = recur(*arguments, truncate, Workspace())
        calls.clear()
        backward(np.ones((T, 1, H)))
        assert len(calls) == products


# ---------------------------------------------------------------------------------------------------------------------
# The listing, the triangle and the exercises


LISTING, LSTM_LISTING = re.findall(r"^```python\n(.*?)^```$", DOCUMENT, re.M | re.S)


def listed(source: str, name: str, lines: int) -> Callable[..., tuple[np.ndarray, ...]]:
    """Return a function that the page lists, in no more than so many lines."""
    assert len(source.splitlines()) <= lines
    scope: dict[str, Any] = {}
    exec(source, scope)  # our own page
    return scope[name]


def double_loop(source: str = LISTING) -> Callable[..., tuple[np.ndarray, ...]]:
    """Return the tutorial's function in the letters of the page."""
    return listed(source, "double_loop", 25)


def random_sentence() -> tuple[np.ndarray, ...]:
    """Return words to read and to predict, and U, W and V."""
    generator = np.random.default_rng(8)
    words = np.array([0, 3, 1, 3, 2, 4, 1, 0])
    U, W, V = (generator.normal(0, 0.7, shape) for shape in ((5, 3), (3, 3), (5, 3)))
    return words[:-1], words[1:], U, W, V


@pytest.mark.parametrize("K", [0, 1, 2, 4, 30])
def test_the_listing_is_what_model_computes(K):
    """The page's double loop and model.py give the same dU, dW and dV at each truncation, without biases."""
    x, y, U, W, V = random_sentence()
    dU, dW, dV = double_loop()(x, y, U, W, V, K)
    parameters = {"U": U, "W": W, "b": np.zeros(3), "V": V, "c": np.zeros(5)}
    language_model = example_model(parameters, K)
    _, backward = language_model.losses(x[:, None], y[:, None], language_model.start(1), Workspace())
    gradients = backward(np.ones((len(x), 1)))
    for name, expected in (("U", dU), ("W1", dW), ("V", dV)):
        np.testing.assert_allclose(in_full(gradients[name], expected), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("K", [0, 1, 2, 4, 30, None])
def test_the_lstm_of_the_page_is_that_of_model(K):
    """The page's second double loop and model.py give the same gradients at each truncation, and without any."""
    generator, (x, y, *_) = np.random.default_rng(4), random_sentence()
    U, W, b, V = (generator.normal(0, 0.7, shape) for shape in ((5, 12), (12, 3), (12,), (5, 3)))
    expected = listed(LSTM_LISTING, "lstm_loop", 40)(x, y, U, W, b, V, len(x) if K is None else K)
    settings = ModelSettings(5, 3, "lstm", K, embedding=12)
    language_model = LanguageModel(settings, {"U": U, "W1": W, "b1": b, "V": V, "c": np.zeros(5)})
    _, backward = language_model.losses(x[:, None], y[:, None], language_model.start(1), Workspace())
    gradients = backward(np.ones((len(x), 1)))
    for name, value in zip(("U", "W1", "b1", "V"), expected, strict=True):
        np.testing.assert_allclose(in_full(gradients[name], value), value, rtol=0, atol=1e-14, err_msg=name)


def test_the_second_listing_names_its_equations_in_order():
    """Equations (1), (3), (5) to (7), (9) to (17) are named in the LSTM's listing, each once."""
    named = [
        int(number) for comment in re.findall(r"#(.*)", LSTM_LISTING) for number in re.findall(r"\((\d+)\)", comment)
    ]
    assert sorted(named) == [1, 3, 5, 6, 7, *range(9, 18)]


def test_what_a_forget_gate_leaves_is_as_the_table_says():
    """The powers of a sigmoid in the table are right to their last digit."""
    rows = table("steps")
    assert [int(row[0]) for row in rows] == [1, 4, 16]
    for steps, *columns in rows:
        for bias, text in zip((0, 1, 3), columns, strict=True):
            assert float(text) == pytest.approx((1 / (1 + math.exp(-bias))) ** int(steps), abs=0.50001e-4)


@pytest.mark.parametrize("K", [0, 1, 2, 3, 9])
def test_the_listing_is_what_the_loops_compute(K):
    """On the worked example's words, without biases, the listing gives N times the loops' gradients of the mean."""
    parameters = {**PARAMETERS, "b": np.zeros_like(PARAMETERS["b"]), "c": np.zeros_like(PARAMETERS["c"])}
    found, N = example_by_loops(K, parameters), len(INPUTS)
    gradients = double_loop()(INPUTS, TARGETS, *(parameters[name] for name in "UWV"), K)
    for name, gradient in zip("UWV", gradients, strict=True):
        np.testing.assert_allclose(gradient, N * found[f"d{name}"], rtol=0, atol=1e-14, err_msg=name)


@pytest.mark.parametrize("K", [0, 1, 4, 9])
def test_with_T_rows_only_dW_is_wrong(K):  # noqa: N802 -- the letter of the page
    """With a state array of T rows instead of T + 1 the listing's dW changes, and nothing else."""
    sentence = random_sentence()
    assert LISTING.count("np.zeros((T + 1, H))") == 1
    wrong = double_loop(LISTING.replace("np.zeros((T + 1, H))", "np.zeros((T, H))"))
    (dU, dW, dV), (wrong_dU, wrong_dW, wrong_dV) = double_loop()(*sentence, K), wrong(*sentence, K)
    assert np.array_equal(dU, wrong_dU)
    assert np.array_equal(dV, wrong_dV)
    assert np.abs(dW - wrong_dW).max() > 0.01


def test_every_line_of_the_listing_that_computes_has_its_number():
    """Equations (1) to (3) and (5) to (11) are named in the listing, each once."""
    named = [int(number) for comment in re.findall(r"#(.*)", LISTING) for number in re.findall(r"\((\d+)\)", comment)]
    assert sorted(named) == [1, 2, 3, 5, 6, 7, 8, 9, 10, 11]


def test_the_two_triangles_are_right():
    """The terms kept and left out by K = 2 and by windows of 3 are those drawn, and so are their numbers."""
    found = [line.split() for line in re.findall(r"^ E_\d +[\d. ]+$", DOCUMENT, re.M)]
    assert [row[0] for row in found] == [f"E_{t}" for t in range(1, 7)]
    for t, (_, *cells) in enumerate(found, 1):
        lags = range(t - 1, -1, -1)  # of k = 1 to t
        left = [str(lag) if lag <= 2 else "." for lag in lags]
        right = [str(lag) if lag <= (t - 1) % 3 else "." for lag in lags]
        assert cells == [*left, str(min(2, t - 1) + 1), *right, str((t - 1) % 3 + 1)]


def test_the_answers_are_right():
    """Each number among the answers to the exercises is computed again."""
    found, truncated = example_by_loops(), example_by_loops(2)
    W = PARAMETERS["W"]
    expected = {
        "terms with K = 4": sum(min(4, t - 1) + 1 for t in range(1, 21)),
        "terms in windows of 5": sum((t - 1) % 5 + 1 for t in range(1, 21)),
        "row 1 of dU": sum(found[f"delta_{t}({k})"] for t, k in ((2, 2), (3, 2), (4, 2), (4, 4))) / 4,
        "what is wrong with dW": sum(np.outer(found[f"delta_{t}(1)"], found["s_4"]) for t in STEPS) / 4,
        "W_12 after the step": W[0, 1] - 0.005 * len(INPUTS) * found["dW"][0, 1],
        "left out with K = 2": found["db"] - truncated["db"],
    }
    np.testing.assert_allclose(expected["row 1 of dU"], found["dU"][1])
    np.testing.assert_allclose(expected["left out with K = 2"], (found["dU"] - truncated["dU"])[0])
    np.testing.assert_allclose(found["dW"], truncated["dW"], atol=1e-15)
    answers = printed("Exercises")
    assert set(answers) == set(expected)
    for name, (value, decimals) in answers.items():
        np.testing.assert_allclose(
            np.squeeze(value), np.squeeze(expected[name]), rtol=0, atol=0.5000001 * 10.0**-decimals, err_msg=name
        )


def test_a_rate_is_for_the_sum_of_the_errors():
    """Plain SGD moves by lr times the gradient of the sum, and at 0.005 and 20 words by 0.1 times that of the mean."""
    language_model, N, work = example_model(PARAMETERS), len(INPUTS), Workspace()
    parameters, before = language_model.parameters, example_model(PARAMETERS).parameters
    optimizer = Optimizer("sgd", parameters, language_model.settings, np.ones(3), power=0)
    assert optimizer.rate(0.005, 20) == pytest.approx(0.1)
    x, y = np.array(INPUTS)[:, None], np.array(TARGETS)[:, None]

    def gradients(weights: np.ndarray) -> dict[str, Gradient]:
        (_, _), backward = language_model.losses(x, y, language_model.start(1), work)
        return backward(weights)

    of_the_sum = {name: in_full(found, before[name]) for name, found in gradients(np.ones(y.shape)).items()}
    optimizer.step(parameters, gradients(mean_weights(y)), optimizer.rate(0.005, N), work)
    for name, value in parameters.items():
        np.testing.assert_allclose(value, before[name] - 0.005 * of_the_sum[name], rtol=0, atol=1e-15, err_msg=name)
    (printed_value,), decimals = printed("Exercises")["W_12 after the step"]
    assert parameters["W1"][0, 1] == pytest.approx(printed_value, abs=0.5000001 * 10.0**-decimals)


def test_decay_takes_several_steps_at_once():
    """Both tables of words, and no other parameter, are multiplied by exp(-sum of eta * lambda), at once."""
    language_model, work = example_model(PARAMETERS), Workspace()
    parameters, before = language_model.parameters, example_model(PARAMETERS).parameters
    optimizer = Optimizer("sgd", parameters, language_model.settings, np.ones(3), weight_decay=0.3)
    for eta in (0.1, 0.2, 0.05):
        optimizer.step(parameters, {}, eta, work)
    optimizer.decay(parameters, work)
    for name, value in parameters.items():
        factor = math.exp(-0.3 * (0.1 + 0.2 + 0.05)) if name in "UV" else 1
        np.testing.assert_allclose(value, factor * before[name], rtol=1e-14, err_msg=name)


def norms_and_bound(scale: float, amplitude: float) -> tuple[list[float], list[float]]:
    """Return the norm of delta_20(20 - lag) and its bound, for the lags 0 to 16 of the experiment in the text."""
    W = scale * np.array([[math.cos(1), -math.sin(1)], [math.sin(1), math.cos(1)]])
    s = [np.zeros(2)]
    for t in range(1, 21):
        s.append(np.tanh(amplitude * np.array([math.sin(2 * t), math.cos(2 * t)]) + W @ s[t - 1]))
    delta = np.array([1.0, 0.0])
    norms, bounds = [1.0], [1.0]
    for k in range(20, 4, -1):
        slope = 1 - s[k - 1] ** 2
        delta = (W.T @ delta) * slope
        norms.append(float(np.linalg.norm(delta)))
        bounds.append(bounds[-1] * float(np.linalg.norm(W, 2) * slope.max()))
    return norms, bounds


def test_errors_shrink_and_grow_as_the_table_says():
    """The norms in the table are computed again; none exceeds its bound, and the bound printed is that of column 4."""
    cases = [norms_and_bound(0.8, 0.001), norms_and_bound(1.25, 0.001), norms_and_bound(1.25, 1.0)]
    for norms, bounds in cases:
        assert all(norm <= bound * (1 + 1e-12) for norm, bound in zip(norms, bounds, strict=True))
    rows = table("lag")
    assert [int(row[0]) for row in rows] == [0, 1, 2, 4, 8, 16]
    for lag, *columns in rows:
        expected = [norms[int(lag)] for norms, _ in cases] + [cases[2][1][int(lag)]]
        for text, value in zip(columns, expected, strict=True):
            assert float(text) == pytest.approx(value, abs=0.5000001 * 10.0 ** -len(text.partition(".")[2]))


def test_a_new_model_forgets_as_fast_as_the_text_says():
    """W as it is drawn stretches some direction 1.15-fold, and shrinks most directions to about 0.58 a step."""
    generator = np.random.default_rng(3)
    W = initialize(ModelSettings(10, hidden=200), np.ones(10), generator, np.float64).parameters["W1"]
    assert np.linalg.norm(W, 2) == pytest.approx(2 / math.sqrt(3), rel=0.03)
    deltas = [generator.normal(size=(200, 50))]
    for _ in range(4):
        deltas.append(W.T @ deltas[-1])
    norms = [np.linalg.norm(delta) for delta in deltas]
    assert norms[1] / norms[0] == pytest.approx(1 / math.sqrt(3), rel=0.05)
    assert norms[4] / norms[0] == pytest.approx(1 / 9, rel=0.2)
