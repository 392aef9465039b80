"""Measure training with a large vocabulary, and how long it stops for a checkpoint; print Markdown tables.

    python benchmarks/vocabulary.py --words 800000 --hidden 100

A text of independent words, whose frequencies are Zipf's, is trained on with the options that rnnlm chooses for 100
million words. Milliseconds are means over windows, so that what is done once in many windows counts with its share.
The parameters are then saved as a checkpoint saves them, a few times, in the folder of temporary files.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import sides
from machine import peak_megabytes, print_table
from parts import LAYERS, timed
from threadpoolctl import threadpool_limits

from rnnlm import model, ranks, training
from rnnlm.archive import write
from rnnlm.clusters import choose_cutoffs
from rnnlm.corpus import Corpus
from rnnlm.defaults import choose
from rnnlm.settings import NetworkSettings, RunSettings, TrainingSettings, cores

PREDICTIONS = 100_000_000  # of the text whose defaults are measured
SAVINGS = 9


def main() -> None:
    """Train models of each kind, print where the time goes, and how long a checkpoint takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=int, default=800_000)
    parser.add_argument("--hidden", type=int, default=100)
    parser.add_argument("--streams", type=int, nargs="+", default=[64])
    parser.add_argument("--clusters", type=int, nargs="+", help="numbers of clusters (default: what rnnlm chooses)")
    parser.add_argument("--no-average", action="store_true", help="keep no average of the weights")
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--windows", type=int, default=64)
    options = parser.parse_args()
    seconds: defaultdict[str, list[float]] = defaultdict(list)
    for name in LAYERS:
        setattr(model, name, timed(getattr(model, name), name, seconds))
    ranks.joint_norm = timed(model.joint_norm, "norm", seconds)
    for name in ("step", "decay"):
        setattr(model.Optimizer, name, timed(getattr(model.Optimizer, name), name, seconds))
    headings = [f"{heading}{way}" for heading in LAYERS.values() for way in (", forward", ", backward")]
    header = ["streams", "clusters", *headings, "norm", "step", "decay", "all else", "window", "words/s", "peak MB"]
    print_table(header, rows(options, seconds))
    print()
    print_table(["MB of a checkpoint", "seconds, median", "longest"], [saving(options)])


def rows(options: argparse.Namespace, seconds: defaultdict[str, list[float]]) -> Iterator[list[str]]:
    """Yield a row for each number of streams and clusters; `seconds` is where the parts note theirs."""
    threadpool_limits(1, user_api="blas")
    for streams in options.streams:
        for asked in options.clusters or [None]:
            shape = sides.Shape(options.words, options.hidden, streams, options.threads, None)
            run, clusters = prepare(shape, asked, not options.no_average)
            run(training.AVERAGE_STEPS)
            seconds.clear()
            begin = time.perf_counter()
            words = run(options.windows)
            total = time.perf_counter() - begin
            parts = [key for name in LAYERS for key in (name, name + "_backward")]
            means = {name: 1e3 * sum(seconds[name]) / options.windows for name in (*parts, "norm", "step", "decay")}
            means["step"] -= means["decay"]  # which is part of it
            window = 1e3 * total / options.windows
            cells = [f"{value:.1f}" for value in (*means.values(), window - sum(means.values()), window)]
            yield [f"{streams}", f"{clusters}", *cells, f"{words / total:,.0f}", f"{peak_megabytes():,.0f}"]


def prepare(shape: sides.Shape, clusters: int | None, average: bool) -> tuple[sides.Run, int]:
    """Make a training ready that has so many predictions; returns what trains windows, and the number of clusters."""
    asked = TrainingSettings(batch_size=shape.streams, bptt=shape.window, epochs=10**9)
    network = NetworkSettings(hidden=shape.hidden)
    chosen = RunSettings(("text",), network=network, training=asked, chosen=("weight_decay", "dropout"))
    settings = replace(choose(chosen, PREDICTIONS, shape.words).training, lr=sides.RATE, average=average)
    counts = np.round(PREDICTIONS * sides.zipf(shape.words)).astype(np.int64)
    dense = model.dense_size(replace(shape, cutoffs=()).settings)
    cutoffs = choose_cutoffs(counts, shape.hidden, shape.streams * shape.window, clusters, dense)
    own = model.initialize(replace(shape, cutoffs=cutoffs).settings, counts, np.random.default_rng(1))
    state, work = training.TrainingState.begin(own, settings, counts), model.Workspace(shape.threads)
    valid = Corpus(np.array([1, 0], np.int32), np.array([0, 2]), 0, 1)  # next to nothing, at an epoch's end
    events = training.train(state, settings, sides.zipf_text(shape), valid, work)

    def run(count: int) -> float:
        words = 0
        while count:
            event = next(events)
            if isinstance(event, training.Progress):
                words, count = words + event.predictions, count - 1
        return words

    return run, len(cutoffs) + 1


def saving(options: argparse.Namespace) -> list[str]:
    """Save a model's parameters some times; returns a row with the seconds until they are on the disk."""
    shape = sides.Shape(options.words, options.hidden, options.streams[0], options.threads)
    own, taken = model.initialize(shape.settings, sides.counts(shape), np.random.default_rng(1)), []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "last.npz")
        for _ in range(SAVINGS):
            begin = time.perf_counter()
            write(path, {}, own.parameters)
            taken.append(time.perf_counter() - begin)
        size = path.stat().st_size
    return [f"{size / 1e6:,.0f}", f"{np.median(taken):.2f}", f"{max(taken):.2f}"]


if __name__ == "__main__":
    main()
