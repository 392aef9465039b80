"""`rnnlm trace`: what delta_t does, on a sentence."""

from __future__ import annotations

import json
import math
import textwrap
from typing import TYPE_CHECKING, Any

import click

from rnnlm.cli.options import Command, Value, json_option, model_option, option, picture_option, refuse_inputs
from rnnlm.cli.progress import WIDTH, fitted, say_unknown
from rnnlm.settings import Count, Natural

if TYPE_CHECKING:
    from rnnlm.tracing import Pair, Term, Trace

COLUMNS = 7  # of a triangle, side by side
UNITS = 12  # whose numbers are shown
WRITTEN = 4  # units of a network whose products are written out
ENTRIES = 8  # rows and columns of a matrix that is shown
SLOPES = {"elman": "(1 - s_{k}^2)", "sigmoid": "s_{k} (1 - s_{k})", "relu": "[z_{k} > 0]"}  # of s along z


@click.command(
    cls=Command,
    short_help="Show backpropagation through time on a sentence.",
    epilog="""\b
    Example:
      rnnlm trace --tutorial
      rnnlm trace "the cat sat on the mat" --at 5 2
    """,
)
@click.argument("sentence", metavar="[SENTENCE]", required=False)
@model_option()
@option("--tutorial", is_flag=True, show_default=False, help="Use the tutorial's network: two units, cats and chase.")
@option("--at", nargs=2, type=Value(Count), metavar="T K", help="Take delta_T(K) apart, number by number.")
@option("--layer", type=Value(Count), show_default="the last", help="Take that of this layer apart, with --at.")
@option("--terms", is_flag=True, show_default=False, help="Show also what each pair adds to the gradients.")
@option(
    "--bptt-truncate",
    type=Value(Natural),
    show_default="as in training",
    help="Steps that errors go back; bracket the rest.",
)
@picture_option("the triangle")
@json_option()
@click.pass_context
def trace(ctx: click.Context, /, sentence: str | None, model: str, tutorial: bool, **options: Any) -> None:
    """Show delta_t(k), which is dE_t/dz_k, for each error t and step k of SENTENCE.

    Errors stand in rows, steps in columns; each number is the length of a vector. Gradients are those of the sum of
    all errors, and are compared with what training computes: "equal to" so many digits. "cut" is the norm of what a
    truncation leaves out, as a share of the whole gradient's. The equations are in docs/derivation.md.
    """
    from rnnlm.run import computing
    from rnnlm.tracing import pair

    if options["layer"] and not options["at"]:
        raise click.UsageError("--layer goes with --at; give --at T K, or leave it out.")
    if tutorial and ctx.get_parameter_source("model") is not click.core.ParameterSource.DEFAULT:
        raise click.UsageError("--tutorial has a model of its own; leave --model out.")
    if sentence is None and not tutorial:
        raise click.UsageError("There is no sentence; give one, or --tutorial.")
    with computing():
        found, words = _tutorial(sentence, options) if tutorial else _saved(str(sentence), model, options)
        layer = options["layer"] or len(found.layers)
        at = options["at"] and (*options["at"], layer, pair(found, layer, *options["at"]))
        terms = found.terms()
    if options["picture"]:
        from rnnlm.pictures import draw_triangle

        refuse_inputs(options["picture"], (model,), "--picture")
        draw_triangle(found, words, options["picture"])
    click.echo(_as_json(found, words, terms, at) if options["as_json"] else _as_text(found, words, terms, at, options))


def _tutorial(sentence: str | None, options: dict[str, Any]) -> tuple[Trace, list[str]]:
    """Trace a sentence of the worked example; return with it the words and the end."""
    import numpy as np

    from rnnlm import tracing

    ids = np.array(tracing.tutorial_ids(tracing.TUTORIAL_SENTENCE if sentence is None else sentence), np.int32)
    found = tracing.trace(tracing.tutorial(), ids, options["bptt_truncate"])
    return found, [tracing.TUTORIAL_WORDS[word] for word in found.y]


def _saved(sentence: str, path: str, options: dict[str, Any]) -> tuple[Trace, list[str]]:
    """Trace a sentence as a model reads it; return with it the words and the end."""
    import rnnlm
    from rnnlm.sources import printable
    from rnnlm.tracing import trace
    from rnnlm.vocabulary import SENTENCE_END

    saved = rnnlm.load(path).saved
    sentences = saved.tokenizer.prompt(sentence)
    if len(sentences) != 1:
        what = f"there are {len(sentences)} sentences" if sentences else "there are no words"
        raise rnnlm.TextError(f"{what} in {sentence[:40]!r}; give one sentence")
    (words,) = sentences
    say_unknown(word for word in words if word not in saved.vocabulary.ids)
    K = options["bptt_truncate"]
    found = trace(saved.model, saved.vocabulary.encode(words), saved.model.settings.truncate if K is None else K)
    return found, [printable(word) for word in (*words, SENTENCE_END)]


# ---------------------------------------------------------------------------------------------------------------------
# As text


def _as_text(found: Trace, words: list[str], terms: list[Term], at: Any, options: dict[str, Any]) -> str:
    from rnnlm.model import CELLS

    lines = ["  t  reads         predicts       bits"]
    for t, (read, word, bits) in enumerate(zip(["</s>", *words], words, found.surprisals, strict=False), 1):
        lines.append(f"{t:>3}  {fitted(read, 12)}  {fitted(word, 12)}{bits:>7.2f}")
    states = CELLS[found.model.settings.cell].states
    for layer in found.layers:
        of_layer = f" of layer {layer.number}" if len(found.layers) > 1 else ""
        lines += ["", f"|delta_t(k)|{of_layer}: errors t in rows, steps k in columns"]
        lines += _triangle(found, words, _lengths(layer.delta))
        for letter, dstate in zip(states, layer.dstates, strict=True) if len(states) > 1 else ():
            lines += ["", f"|dE_t/d{letter}_k|{of_layer}", *_triangle(found, words, _lengths(dstate))]
    for term in terms if options["terms"] else []:
        lines += ["", f"What each pair adds to {term.name}, its norm", *_triangle(found, words, term.norms)]
    lines += ["", *_sums(found, terms)]
    if at:
        lines += ["", *_taken_apart(found, *at)]
    return "\n".join(line.rstrip() for line in lines)


def _lengths(vectors: Any) -> Any:
    import numpy as np

    return np.linalg.norm(vectors, axis=-1)


def figure(number: float) -> str:
    """Write a number in at most eight characters."""
    size = abs(number)
    if size == 0:
        return "0"
    if not 0.0005 <= size < 1000:
        return f"{number:.0e}"
    return f"{number:.{3 if size < 100 else 1}f}"


def _triangle(found: Trace, words: list[str], numbers: Any) -> list[str]:
    """Line up a triangle (T, T), as many columns at a time as fit; what truncation cuts stands in brackets."""
    read, lines, pairs, kept, T = ["</s>", *words], [], found.pairs, found.kept, len(words)
    for start in range(0, T, COLUMNS):
        columns = range(start, min(start + COLUMNS, T))
        lines.append("  t  predicts    " + " ".join(fitted(f"{k + 1} {read[k]}", 8, right=True) for k in columns))
        for t in range(start, T):
            cells = [figure(float(numbers[t, k])) if pairs[t, k] else "" for k in columns]
            cells = [f"[{text}]" if text and not kept[t, k] else text for text, k in zip(cells, columns, strict=True)]
            lines.append(f"{t + 1:>3}  {fitted(words[t], 12)}" + " ".join(f"{text:>8}" for text in cells))
    return lines


def _sums(found: Trace, terms: list[Term]) -> list[str]:
    """Say what all pairs add up to, and whether model.py agrees."""
    K, pairs, left = found.model.settings.truncate, int(found.pairs.sum()), int(found.kept.sum())
    which = f"all {pairs} pairs" if K is None else f"the {left} pairs with t - k <= {K}"
    lines = [f"The sum of {which}, beside the gradient of model.py"]
    lines += [f"{pairs - left} of {pairs} pairs are cut."] if left < pairs else []
    lines.append(f"{'':<8}{'norm':>10}{'cut':>9}   equal to")
    for term in terms:
        size = figure(math.hypot(*term.total.reshape(-1)))
        lines.append(f"{term.name:<8}{size:>10}{term.cut:>9.1%}   {term.digits} digits")
    return lines


# ---------------------------------------------------------------------------------------------------------------------
# One pair


def _taken_apart(found: Trace, t: int, k: int, layer: int, apart: Pair) -> list[str]:
    """Show how delta_t(k) came to be, and what it adds."""
    import numpy as np

    of_layer = f" of layer {layer}" if len(found.layers) > 1 else ""
    cut = "" if found.kept[t - 1, k - 1] else ", which the truncation cuts"
    lines = [f"delta_{t}({k}){of_layer} = dE_{t}/dz_{k}{cut}"]
    sizes = np.abs([gate.delta for gate in apart.gates]).sum(axis=0)
    units = sorted(np.argsort(-sizes, kind="stable")[:UNITS].tolist())
    if len(sizes) > UNITS:
        lines.append(f"The {UNITS} of {len(sizes)} units whose deltas are largest; --json has all.")
    for state in dict.fromkeys(arrival.state for arrival in apart.arrivals):
        own = [arrival for arrival in apart.arrivals if arrival.state == state]
        equation = f"dE_{t}/d{state}_{k} = " + " + ".join(arrival.formula for arrival in own)
        lines += ["", *textwrap.wrap(equation, WIDTH, subsequent_indent="    ")]
        lines += _columns(units, [arrival.values for arrival in own], "+", sum(arrival.values for arrival in own))
    for gate in apart.gates:
        name = f"delta_{t}({k})" if len(apart.gates) == 1 else f"delta_{t}({k}) of the gate {gate.gate}"
        slope = SLOPES.get(found.model.settings.cell, f"d{gate.state}_{{k}}/dz_{{k}}").format(k=k)
        lines += ["", f"{name} = dE_{t}/d{gate.state}_{k} * {slope}"]
        lines += _columns(units, [gate.dstate, gate.slope], "*", gate.delta)
    lines += ["", f"The same as in model.py, to {apart.digits} digits.", *_written_out(found, t, k, layer)]
    return [*lines, "", *_added(found, t, k, layer)]


def _columns(units: list[int], parts: list[Any], sign: str, result: Any) -> list[str]:
    """Line up what makes each number of a vector."""
    lines = []
    for unit in units:
        row = f" {sign} ".join(f"{part[unit]:>12.5g}" for part in parts)
        equals = f"  = {result[unit]:>12.5g}" if len(parts) > 1 else ""  # a single part is the result
        lines.append(f"  unit {unit + 1:>4}  {row}{equals}")
    return lines


def _written_out(found: Trace, t: int, k: int, layer: int) -> list[str]:
    """Write (9) out for a small network."""
    if found.model.settings.cell != "elman" or k == t or layer < len(found.layers):
        return []
    own, W, lines = found.layers[layer - 1], found.model.parameters[f"W{layer}"], [""]
    if len(W) > WRITTEN:
        return []
    s = own.before[k]  # s_k
    for i in range(len(s)):
        products = " + ".join(f"{W[m, i]:.5g} * {own.delta[t - 1, k, m]:.5f}" for m in range(len(s)))
        result = f"{own.delta[t - 1, k - 1, i]:.5f}"
        s_i = f"{s[i]:.5f}" if s[i] >= 0 else f"({s[i]:.5f})"
        equation = f"delta_{t}({k})[{i + 1}] = ({products}) * (1 - {s_i}^2) = {result}"
        lines += textwrap.wrap(equation, WIDTH, initial_indent="  ", subsequent_indent=" " * 6)
    return lines


def _added(found: Trace, t: int, k: int, layer: int) -> list[str]:
    """Show what the pair adds to each gradient."""
    from rnnlm.tracing import additions

    lines = ["What this pair adds"]
    for added in additions(found, layer, t, k):
        rows = added.left[:, None] * added.right
        lines.append(f"  d{added.name} += {added.formula}, of norm {figure(math.hypot(*rows.reshape(-1)))}")
        if len(rows) <= ENTRIES >= rows.shape[1]:
            lines += ["      " + " ".join(f"{_entry(number):>8}" for number in row) for row in rows]
    return lines


def _entry(number: float) -> str:
    return f"{number:.5f}" if abs(number) < 10 else f"{number:.1e}"


# ---------------------------------------------------------------------------------------------------------------------
# As JSON


def _as_json(found: Trace, words: list[str], terms: list[Term], at: Any) -> str:
    """Give all numbers; rows of triangles end at k = t."""
    from rnnlm.model import CELLS

    K, cell = found.model.settings.truncate, found.model.settings.cell

    def triangle(numbers: Any) -> list[list[float]]:
        return [row[: t + 1].tolist() for t, row in enumerate(numbers)]

    states = CELLS[cell].states
    layers = [
        {
            "layer": layer.number,
            "delta": triangle(_lengths(layer.delta)),
            **{f"d{letter}": triangle(_lengths(d)) for letter, d in zip(states, layer.dstates, strict=True)},
        }
        for layer in found.layers
    ]
    report = {
        "reads": ["</s>", *words[:-1]],
        "predicts": words,
        "surprisals": found.surprisals.tolist(),
        "cell": cell,
        "bptt_truncate": K,
        "layers": layers,
        "gradients": [
            {
                "name": term.name,
                "norm": math.hypot(*term.total.reshape(-1)),
                "cut": term.cut,
                "digits": term.digits,
                "pairs": triangle(term.norms),
            }
            for term in terms
        ],
        "at": _pair_json(found, *at) if at else None,
    }
    return json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)


def _pair_json(found: Trace, t: int, k: int, layer: int, apart: Pair) -> dict[str, Any]:
    from rnnlm.tracing import additions

    return {
        "t": t,
        "k": k,
        "layer": layer,
        "kept": bool(found.kept[t - 1, k - 1]),
        "arrivals": [{**arrival._asdict(), "values": arrival.values.tolist()} for arrival in apart.arrivals],
        "gates": [
            {name: value if isinstance(value, str) else value.tolist() for name, value in gate._asdict().items()}
            for gate in apart.gates
        ],
        "digits": apart.digits,
        "adds": [
            {"name": f"d{name}", "formula": formula, "left": left.tolist(), "right": right.tolist()}
            for name, formula, left, right in additions(found, layer, t, k)
        ],
    }
