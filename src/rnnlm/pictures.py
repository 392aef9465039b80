"""Pictures of errors going back, drawn by matplotlib, an optional extra."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rnnlm.errors import ModelError, SettingsError
from rnnlm.files import replacing

if TYPE_CHECKING:
    from rnnlm.gradflow import Flow
    from rnnlm.tracing import Trace

REMEDY = "make room or name another --picture"
WRITTEN = 14  # rows of a triangle whose numbers are written in it
LABELS = 40  # words at an axis, at most
NAME = 40  # characters of the name of a model in a legend, at most
DARK = 0.47  # of the colors from 0 to 1: on those below, white can be read better than black
LEAST = 1e-4  # of the largest number: what is smaller has the same color


def check_matplotlib(option: str = "--picture") -> None:
    """Raise SettingsError where the picture that an option asks for cannot be drawn, as matplotlib is missing."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise SettingsError(f"{option} needs matplotlib, which is not installed; pip install matplotlib") from None


def draw_triangle(trace: Trace, words: list[str], path: Path) -> None:
    """Draw |delta_t(k)| of each layer: errors in rows with the words predicted, steps in columns with those read.

    What truncation cuts is hatched. Raises SettingsError as `check_matplotlib`, ModelError where the file cannot be
    written.
    """
    check_matplotlib()
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    T = len(words)
    size = 2 + max(2.0, min(9.0, 0.55 * T))
    figure = Figure(figsize=((size + 0.8) * len(trace.layers), size), layout="constrained")
    for axes, layer in zip(figure.subplots(1, len(trace.layers), squeeze=False)[0], trace.layers, strict=True):
        norms = np.linalg.norm(layer.delta, axis=2)
        most = float(norms.max()) or 1.0
        shown = np.ma.array(np.maximum(norms, most * LEAST), mask=~trace.pairs)
        image = axes.imshow(shown, cmap="cividis", norm=LogNorm(max(most * LEAST, float(shown.min())) * 0.999, most))
        for t, cut in enumerate((trace.pairs & ~trace.kept).sum(axis=1).tolist()):  # the first steps of each row
            if cut:
                axes.add_patch(Rectangle((-0.5, t - 0.5), cut, 1, fill=False, hatch="////", ec="white", lw=0))
        _label(axes, [plain(word) for word in ["</s>", *words[:-1]]], [plain(word) for word in words])
        if T <= WRITTEN:
            _write(axes, trace, norms, image)
        of_layer = f", layer {layer.number}" if len(trace.layers) > 1 else ""
        cut = "" if trace.kept.sum() == trace.pairs.sum() else "\nhatched: cut by the truncation"
        axes.set_title(rf"$|\delta_t(k)|$: the error of step t, at step k{of_layer}{cut}", fontsize=11)
        bar = figure.colorbar(image, ax=axes, shrink=0.7)
        for formatter in (bar.ax.yaxis.set_major_formatter, bar.ax.yaxis.set_minor_formatter):
            formatter(StrMethodFormatter("{x:.3g}"))
        bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        bar.ax.yaxis.set_minor_locator(NullLocator())
    save(figure, path)


def plain(word: str, most: int = 12) -> str:
    """Return a word that matplotlib takes for no formula, of at most so many characters."""
    return (word if len(word) <= most else f"{word[: most - 1]}…").replace("$", r"\$")


def _label(axes: Any, read: list[str], predicted: list[str]) -> None:
    """Put words at the axes, as many as there is room for."""
    some = range(0, len(read), math.ceil(len(read) / LABELS))
    axes.set_xticks(some, [f"{k + 1} {read[k]}" for k in some], rotation=60, ha="right")
    axes.set_yticks(some, [f"{t + 1} {predicted[t]}" for t in some])
    axes.set(xlabel="step k, and the word read", ylabel="error t, and the word to predict")
    axes.spines[:].set_visible(False)


def _write(axes: Any, trace: Trace, norms: Any, image: Any) -> None:
    """Write the numbers, light on dark and dark on light."""
    for t, k in zip(*np.nonzero(trace.pairs), strict=True):
        color = "white" if image.norm(norms[t, k]) < DARK else "black"
        back = {"fc": image.cmap(image.norm(norms[t, k])), "ec": "none", "pad": 1}
        axes.text(k, t, f"{norms[t, k]:.2g}", ha="center", va="center", color=color, fontsize=8, bbox=back)


def draw_flow(flows: Mapping[str, Flow], path: Path) -> None:
    """Draw the mean norm of delta_t(t - lag) by lag: a line for each layer of the models, by what they are called.

    For an LSTM a dotted line shows the same of dE_t/dc: errors that go from cell state to cell state do not pass W, and
    delta, which is taken behind the gates, does not show them. A dashed line says how far the advised truncation
    reaches. Raises what `draw_triangle` does.
    """
    check_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, flow in flows.items():
        end = name if len(name) <= NAME else f"…{name[1 - NAME :]}"  # where paths differ
        called = f" of {plain(end, NAME)}" if name else ""
        lags = np.flatnonzero(flow.pairs)
        for layer in flow.layers:
            of = called
            if len(flow.layers) > 1:
                of += f"{',' if called else ' of'} layer {layer.number}"
            label = rf"$\delta_t${of}: {layer.factor:.2f} a step"
            delta, _, *others = layer.of_first
            (line,) = axes.plot(lags, delta[lags], marker=".", label=label)
            for of_cell in others:
                label = rf"$\partial E_t / \partial c${of}"
                axes.plot(lags, of_cell[lags], ls=":", color=line.get_color(), label=label)
        if flow.advice is not None:
            label = f"K = {flow.advice}{called} loses {flow.lost[flow.advice]:.1%}"
            axes.axvline(flow.advice, color=line.get_color(), ls="--", lw=1, label=label)
    axes.set(xlabel="lag, steps back from the error", yscale="log")
    axes.set_ylabel(r"mean norm at step $t - \mathrm{lag}$, of that at lag 0")
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, path)


def save(figure: Any, path: Path, remedy: str = REMEDY) -> None:
    """Write a figure in the format of the file's name; raises ModelError, with the remedy, where that fails."""
    with replacing(path, ModelError, remedy) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a letter that the font lacks, which shows as a box
        figure.savefig(file, format=path.suffix.lower().removeprefix("."), dpi=150)
