"""The learning curve as a picture; with pictures.py the only file that knows matplotlib, an optional extra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rnnlm.archive import REMEDY
from rnnlm.errors import ModelError
from rnnlm.files import replacing
from rnnlm.pictures import check_matplotlib, plain, save

if TYPE_CHECKING:
    from rnnlm.training import Record

STEPS = (1, 1.5, 2, 3, 4, 6, 8)  # of ticks, in each power of ten


def draw_curve(history: Sequence[Record], path: Path) -> str | None:
    """Draw the perplexities of a run's evaluations by epoch, as an SVG, and return None; or say why it is not drawn."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        with suppress(OSError):
            path.unlink(missing_ok=True)  # that of an older model would mislead
        return "matplotlib is not installed (pip install matplotlib)"
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    epochs = epochs_done(history)
    validation = [record.valid_perplexity for record in history]
    known = {at: record.train_perplexity for at, record in zip(epochs, history, strict=True) if record.train_perplexity}
    axes.plot(list(known), list(known.values()), marker=".", label="training")
    axes.plot(epochs, validation, marker=".", label="validation")
    best = min(range(len(history)), key=validation.__getitem__)
    axes.plot(
        epochs[best], validation[best], "o", mfc="none", ms=10, color="black", label=f"best: {validation[best]:.2f}"
    )
    axes.set(xlabel="epoch", ylabel="perplexity", yscale="log", xlim=(0, 1.03 * max(1, epochs[-1])))
    _finish(axes, [*validation, *known.values()])
    try:
        with replacing(path, ModelError, REMEDY) as file:
            figure.savefig(file, format="svg")
    except ModelError as error:
        return str(error)
    return None


def draw_runs(runs: Mapping[str, Sequence[Record]], path: Path, by: Literal["epoch", "seconds"] = "epoch") -> None:
    """Draw runs side by side, by what they are called: validation in full lines, training in dashed ones.

    The format is that of the file's name: SVG, PNG or PDF. Raises SettingsError where matplotlib is missing, ModelError
    where the file cannot be written.
    """
    check_matplotlib("-o")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    shown: list[float] = []
    for name, history in runs.items():
        at = epochs_done(history) if by == "epoch" else [record.seconds for record in history]
        validation = [record.valid_perplexity for record in history]
        best = min(range(len(history)), key=validation.__getitem__)
        label = f"{validation[best]:.2f}  {plain(name, 40)}"  # one that begins with _ would not be shown
        (line,) = axes.plot(at, validation, marker=".", label=label)
        known = [(x, record.train_perplexity) for x, record in zip(at, history, strict=True) if record.train_perplexity]
        axes.plot([x for x, _ in known], [y for _, y in known], ls="--", lw=1, color=line.get_color())
        axes.plot(at[best], validation[best], "o", mfc="none", ms=10, color=line.get_color())
        shown += [*validation, *(y for _, y in known)]
    label = "epoch" if by == "epoch" else "seconds of training"
    axes.set(xlabel=label, ylabel="perplexity; dashed: training", yscale="log")
    axes.set_xlim(left=0)
    _finish(axes, shown)
    save(figure, path, "make room or name another file with -o")


def epochs_done(history: Sequence[Record]) -> list[float]:
    """Return how many epochs were done at each evaluation."""
    whole = max(record.window for record in history)  # windows of an epoch, once one has ended
    return [
        record.epoch if record.train_perplexity is not None else record.epoch - 1 + record.window / whole
        for record in history
    ]


def _finish(axes: Any, shown: Sequence[float]) -> None:
    _set_ticks(axes, min(shown), max(shown))
    axes.grid(alpha=0.3)
    axes.legend()


def _set_ticks(axes: Any, lowest: float, highest: float) -> None:
    """Put plain numbers at the ticks: round ones of a logarithmic scale, or equal steps where the range is small."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

    wide = highest > 3 * lowest
    axes.yaxis.set_major_locator(LogLocator(subs=STEPS) if wide else MaxNLocator(6))
    axes.yaxis.set_major_formatter(
        StrMethodFormatter("{x:,.0f}" if lowest > 30 and highest > lowest + 12 else "{x:,.4g}")
    )
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
