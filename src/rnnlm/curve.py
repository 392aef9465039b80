"""The learning curve as a picture; the only file that knows matplotlib, an optional extra."""

from pathlib import Path
from typing import Any

from rnnlm.errors import ModelError
from rnnlm.files import replacing


def can_draw() -> bool:
    """Say whether matplotlib is installed."""
    import importlib.util

    return importlib.util.find_spec("matplotlib") is not None


def draw_curve(history: list[dict[str, Any]], path: Path) -> None:
    """Draw the perplexities of a run's evaluations over time, as an SVG; ModelError where it cannot be written."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    seconds = [record["seconds"] for record in history]
    for name, label in (("train_perplexity", "training, mean over the epoch"), ("valid_perplexity", "validation")):
        axes.plot(seconds, [record[name] for record in history], marker=".", label=label)
    axes.set(xlabel="seconds of training", ylabel="perplexity", yscale="log")
    axes.grid(which="both", alpha=0.3)
    axes.legend()
    with replacing(path, ModelError, "make room or name another --model") as file:
        figure.savefig(file, format="svg")
