"""Measure where the time of a window of training goes, at the full softmax, and print a Markdown table.

    python benchmarks/parts.py

Milliseconds, medians over windows. "Products alone" is what the unavoidable products, `Shape.operations` a word, would
take at the rate at which this machine multiplies matrices, measured in between; it is the least that a window can take.
"""

import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np
import sides
from machine import print_table

from rnnlm import model, ranks
from rnnlm.settings import cores

NETWORKS, HIDDEN, STREAMS = ("elman", "lstm"), (100, 200, 512), (20, 64)
LAYERS = {"embed": "embed", "recur": "recur", "softmax_loss": "softmax"}  # functions of model.py, and their headings
WINDOWS = 30


def main() -> None:
    """Time all shapes, and print the table."""
    threads = cores()
    seconds: defaultdict[str, list[float]] = defaultdict(list)
    for name in LAYERS:
        setattr(model, name, timed(getattr(model, name), name, seconds))
    ranks.joint_norm = timed(model.joint_norm, "joint_norm", seconds)
    model.Optimizer.step = timed(model.Optimizer.step, "step", seconds)
    headings = [f"{heading}{way}" for heading in LAYERS.values() for way in (", forward", ", backward")]
    header = ["cell", "H", "B", *headings, "norm", "step", "all else", "window", "products alone"]
    print_table(header, rows(threads, seconds))


def rows(threads: int, seconds: dict[str, list[float]]) -> Iterator[list[str]]:
    """Yield a row for each shape; `seconds` is where the parts note theirs."""
    for cell, hidden, streams in itertools.product(NETWORKS, HIDDEN, STREAMS):
        shape = sides.Shape(10_000, hidden, streams, threads, cell=cell)
        ours, product = sides.prepare_ours(shape), sides.prepare_product(threads, own=True)
        ours(3)
        seconds.clear()
        windows, words, rates = [], [], []
        for _ in range(WINDOWS):
            begin = time.perf_counter()
            words.append(ours(1))
            windows.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            rates.append(product(1) / (time.perf_counter() - begin))
        keys = [key for name in LAYERS for key in (name, name + "_backward")]
        medians = [float(np.median(seconds[key])) for key in (*keys, "joint_norm", "step")]
        window = float(np.median(windows))
        least = np.median(words) * shape.operations / np.median(rates)
        cells = [f"{1e3 * value:.1f}" for value in (*medians, window - sum(medians), window, least)]
        yield [cell, f"{hidden}", f"{streams}", *cells]


def timed(function: Callable, name: str, seconds: dict[str, list[float]]) -> Callable:
    """Let a function note its seconds, and those of the backward function that it returns, if it does."""

    def run(*arguments: object, **named: object) -> object:
        begin = time.perf_counter()
        result = function(*arguments, **named)
        seconds[name].append(time.perf_counter() - begin)
        if isinstance(result, tuple) and callable(result[1]):
            return result[0], timed(result[1], name + "_backward", seconds)
        return result

    return run


if __name__ == "__main__":
    main()
