"""`rnnlm gradflow`: how far back errors reach over a text, and what a truncation would lose."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click

from rnnlm.checking import Range
from rnnlm.cli.options import (
    Command,
    Value,
    json_option,
    model_option,
    option,
    picture_option,
    refuse_inputs,
    threads_option,
)
from rnnlm.cli.progress import bar, stage_bar
from rnnlm.errors import counted
from rnnlm.settings import Count

if TYPE_CHECKING:
    from rnnlm.gradflow import Flow, LayerFlow
    from rnnlm.sources import Source

LAGS = 32
SHOWN = (*range(9), 10, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256)  # lags in the table, and the last
MOST_LAGS = 256
Lags = Annotated[int, Range(1, MOST_LAGS)]


@click.command(
    cls=Command,
    short_help="Measure how far back gradients reach in a text.",
    epilog="""\b
    Example:
      rnnlm gradflow text.txt --model model
      rnnlm gradflow text.txt --model elman --beside lstm --picture both.svg
    """,
)
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(allow_dash=True))
@model_option()
@option("--lags", type=Value(Lags), default=LAGS, help="Follow errors so many steps back.")
@option(
    "--words",
    type=Value(Count),
    default=10_000,
    help="Stop after so many words, at the end of a window of up to 2,048.",
)
@picture_option("the norms by lag")
@option("--beside", type=Value(str), metavar="PATH", multiple=True, help="Draw this model too, in the same picture.")
@threads_option()
@json_option()
def gradflow(
    files: tuple[str, ...],
    model: str,
    lags: int,
    words: int,
    picture: Path | None,
    beside: tuple[str, ...],
    threads: int,
    as_json: bool,
) -> None:
    """Show the mean norm of delta_t(t - lag) over FILE...: texts, plain or gzip, or - for standard input.

    A row is a lag: pairs are the errors with a step so far back, |delta| is the mean norm there, "of lag 0" its share
    of that at the error's own step, and "beyond" the share of the sum of all norms that lies at longer lags. Ends with
    a small --bptt-truncate that loses at most 1% of the gradient: gradients of the recurrent layers and of the words'
    rows are computed with it and without it.
    """
    from rnnlm.pictures import check_matplotlib, draw_flow
    from rnnlm.sources import spooled

    if beside and picture is None:
        raise click.UsageError("--beside goes with --picture; give both, or neither.")
    if picture is not None:
        check_matplotlib()
        refuse_inputs(picture, (*files, model, *beside), "--picture")
    with spooled(files) as sources:
        flows = {path: _flow(path, sources, lags, words, threads) for path in (model, *beside)}
    if picture is not None:
        draw_flow(flows if beside else {"": flows[model]}, picture)
    click.echo(_as_json(flows[model]) if as_json else _as_text(flows[model]))


def _flow(path: str, sources: list[Source], lags: int, words: int, threads: int) -> Flow:
    """Follow the errors of a model over texts, cut as its training text was."""
    import rnnlm
    from rnnlm.corpus import encode_once
    from rnnlm.gradflow import gradient_flow
    from rnnlm.run import working

    saved = rnnlm.load(path, threads=threads).saved
    with working(threads) as work:
        corpus = encode_once(sources, saved.tokenizer, saved.vocabulary, processes=threads, stage=stage_bar)
        with bar("following errors", min(words, corpus.predictions), " words") as progress:
            return gradient_flow(saved.model, corpus, work, lags=lags, words=words, progress=progress.update)


def _as_text(flow: Flow) -> str:
    lines = [f"{flow.errors:,} errors, each followed {len(flow.pairs) - 1} steps back or to where the state begins"]
    for layer in flow.layers:
        lines += ["", *_layer(flow, layer)]
    tried = ", ".join(f"K = {K} loses {share:.2%}" for K, share in flow.lost.items())
    return "\n".join([*lines, "", *textwrap.wrap(f"Measured: {tried}.", 80), *textwrap.wrap(_advice(flow), 80)])


def _layer(flow: Flow, layer: LayerFlow) -> list[str]:
    of_layer = f"Layer {layer.number}: a" if len(flow.layers) > 1 else "A"
    verdict = {"vanish": "gradients vanish", "explode": "gradients explode", "steady": "gradients stay"}[layer.verdict]
    lines = [f"{of_layer} step back keeps {layer.factor:.3f} of delta, geometric mean: {verdict}", ""]
    two = len(layer.dstates) > 1
    heads = ["lag", "pairs", "|delta|", "of lag 0", "|dE/ds|", *(["|dE/dc|"] if two else []), "beyond"]
    lines.append("".join(f"{head:>{width}}" for head, width in zip(heads, WIDTHS, strict=False)))
    last, of_first = int(flow.pairs.nonzero()[0][-1]), layer.of_first[0]
    for lag in [lag for lag in SHOWN if lag < last] + [last]:
        numbers = [layer.delta[lag], of_first[lag], *layer.dstates[:, lag]]
        cells = [
            f"{lag}",
            f"{flow.pairs[lag]:,}",
            *(f"{number:.2e}" for number in numbers),
            "-" if lag == last else f"{layer.beyond[lag]:.1%}",
        ]
        lines.append("".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=False)))
    lines += ["", f"  {'W':<8}{'spectral radius':>16}{'largest singular value':>24}{'mean slope':>13}"]
    for gate in layer.gates:
        name = "" if len(layer.gates) == 1 else f"gate {gate.gate}"
        radius, singular = ("-" if number is None else f"{number:.3f}" for number in (gate.radius, gate.singular))
        lines.append(f"  {name:<8}{radius:>16}{singular:>24}{gate.slope:>13.3g}")
    return [*lines, *([f"  Past W, a state keeps {layer.past:.3f} of itself at a step."] if layer.past else [])]


WIDTHS = (5, 10, 11, 11, 11, 11, 9)


def _advice(flow: Flow) -> str:
    """Say what truncation costs."""
    if flow.advice is None:
        lags = len(flow.pairs) - 1
        remedy = "leave --bptt-truncate out" + (", or give a larger --lags" if lags < MOST_LAGS else "")
        return f"More than 1% of the gradient comes from beyond {counted(lags, 'step')}: {remedy}."
    within, lost = counted(flow.advice, "step"), f"{flow.lost[flow.advice]:.1%}"
    return f"99% of the gradient's norm is within {within}: --bptt-truncate {flow.advice} loses {lost}."


def _as_json(flow: Flow) -> str:
    layers: list[dict[str, Any]] = [
        {
            "layer": layer.number,
            "verdict": layer.verdict,
            "factor": layer.factor,
            "delta": layer.delta.tolist(),
            **{f"d{letter}": norms.tolist() for letter, norms in zip("sc", layer.dstates, strict=False)},
            "beyond": layer.beyond.tolist(),
            "gates": [gate._asdict() for gate in layer.gates],
            "past_W": layer.past,
        }
        for layer in flow.layers
    ]
    lost = {str(K): share for K, share in flow.lost.items()}
    report = {"errors": flow.errors, "pairs": flow.pairs.tolist(), "layers": layers}
    return json.dumps({**report, "lost": lost, "bptt_truncate": flow.advice}, indent=2, allow_nan=False)
