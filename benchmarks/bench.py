"""Measure the speed of rnnlm on this machine, beside PyTorch where it is installed, and write a Markdown page.

    python benchmarks/bench.py

takes some minutes and writes benchmarks/results.md; README.md beside it says what each table means.
"""

import argparse
import itertools
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import sides
import tokenizing
from contest import Entry, Result, contest
from machine import ROOT, Table, facts, has_torch, rnnlm
from sides import Shape

from rnnlm.settings import cores

OURS, SAME, EAGER, COMPILED = "ours", "ours, their cutoffs", "PyTorch", "torch.compile"
OWN = "numpy, one BLAS thread in each of our threads"
SHARED = "numpy, BLAS's own threads"
TORCH_PRODUCT = "PyTorch's own threads"
NETWORKS = {"elman": "Elman", "relu": "ReLU", "gru": "GRU", "lstm": "LSTM"}
EPOCHS, EPOCH = 10, 35_000_000  # epochs, words


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    rounds: int = 5
    seconds: float = 0.4  # a turn
    words: int = 10_000
    text: int = 1_000_000
    hidden: tuple[int, ...] = (100, 200, 512)
    streams: tuple[int, ...] = (20, 64)
    cutoffs: tuple[int, ...] = (1000, 4000)
    cells: tuple[str, ...] = ("lstm", "gru")  # beside Elman's
    gated: tuple[int, ...] = (200, 512)  # H of their table
    medium: int = 200  # H of every table that has only one
    large: int = 50_000  # V of the model that takes hours
    vocabularies: tuple[int, ...] = (10_000, 50_000, 200_000, 800_000)
    starts: int = 10  # processes
    raw: str = "data/train.txt"
    tokenized: int = 1_000_000
    sentences: int = 1000
    evaluated: int = 30_000


QUICK = Sizes(
    rounds=1,
    seconds=0.01,
    words=300,
    text=5000,
    hidden=(10,),
    streams=(4,),
    cutoffs=(30, 100),
    cells=(),  # the LSTM of two layers is there anyway
    gated=(10,),
    medium=10,
    large=1200,
    vocabularies=(300, 1200),
    starts=1,
    raw="data/valid.txt",
    tokenized=2000,
    sentences=20,
    evaluated=1000,
)


@dataclass
class Bench:
    """A run: how much is measured, on how many threads, and why there is no PyTorch (empty: there is)."""

    sizes: Sizes
    threads: int
    no_torch: str = ""
    products: dict[str, list[float]] = field(default_factory=dict)  # operations a second, of the whole run

    def shape(self, hidden: int, streams: int, cutoffs: tuple[int, ...] | None = (), **network: Any) -> Shape:
        """Return a shape with the usual vocabulary and text; `network` is cell, layers, tied."""
        return Shape(self.sizes.words, hidden, streams, self.threads, cutoffs, text=self.sizes.text, **network)

    def contest(self, title: str, ours: Mapping[str, Entry], theirs: Mapping[str, Entry]) -> Result:
        """Let us, PyTorch and the bare matrix product take turns."""
        say(title)
        products = {name: (sides.prepare_product, self.threads, name == OWN) for name in (OWN, SHARED)}
        theirs = {**theirs, TORCH_PRODUCT: (sides.prepare_torch_product, self.threads)}
        entries = {**products, **ours, **({} if self.no_torch else theirs)}
        result = contest(entries, self.sizes.rounds, self.sizes.seconds)
        result.failures |= dict.fromkeys(theirs, self.no_torch) if self.no_torch else {}
        for name in (OWN, SHARED, TORCH_PRODUCT):
            self.products.setdefault(name, []).extend(result.rates.get(name, []))
        return result


def say(title: str) -> None:
    """Tell whoever waits what is measured now."""
    print(f"{time.strftime('%H:%M:%S')}  {title}", file=sys.stderr, flush=True)


def speed(result: Result, name: str) -> str:
    """Write a contestant's median rate, or why it has none."""
    return result.failures.get(name) or f"{result.rate(name):,.0f}"


def times(ratio: float) -> str:
    """Write how many times as fast one is as another, where both could be measured."""
    return "-" if math.isnan(ratio) else f"{ratio:.2f}"


def product_table(bench: Bench) -> Table:
    """Return (a): what the run has measured of the matrix product."""
    rows = [
        (name, *(f"{np.percentile(rates, share) / 1e9:.0f}" for share in (50, 0, 100)), f"{len(rates)}")
        for name, rates in bench.products.items()
        if rates
    ]
    note = f"Products of float32 matrices, {sides.PRODUCT} by {sides.PRODUCT}, measured in each round of (b) to (f)."
    header = ("on", "median, GFLOP/s", "least", "most", "measurements")
    return Table("(a) Matrix product", note, header, rows)


def training_table(bench: Bench) -> Table:
    """Return (b): training with the softmax over all words."""
    sizes = itertools.product(bench.sizes.hidden, bench.sizes.streams)
    return full_table(bench, "(b) Training, full softmax", [bench.shape(*size) for size in sizes])


def cell_table(bench: Bench) -> Table:
    """Return (d): the same with other cells, and a model of two layers."""
    sizes = itertools.product(bench.sizes.cells, bench.sizes.gated, bench.sizes.streams)
    shapes = [bench.shape(hidden, streams, cell=cell) for cell, hidden, streams in sizes]
    stacked = bench.shape(bench.sizes.medium, bench.sizes.streams[0], cell="lstm", layers=2, tied=True)
    return full_table(bench, "(d) Training, other cells, full softmax", [*shapes, stacked])


def full_table(bench: Bench, title: str, shapes: Sequence[Shape]) -> Table:
    """Return a table of training with the softmax over all words."""
    rows, ratios = [], []
    for shape in shapes:
        theirs = {EAGER: (sides.prepare_torch, shape), COMPILED: (sides.prepare_torch, shape, True)}
        names = (network(shape), f"{shape.hidden}", f"{shape.streams}")
        result = bench.contest(f"{title}: {', '.join(names)}", {OURS: (sides.prepare_ours, shape)}, theirs)
        product = np.maximum(result.rates[OWN], result.rates[SHARED])  # the better way in each round
        share = float(np.median(result.rates[OURS] * shape.operations / product))
        ratios.append([result.ratio(OURS, name) for name in theirs])
        speeds = [speed(result, name) for name in (OURS, *theirs)]
        rows.append((*names, *speeds, *map(times, ratios[-1]), f"{share:.0%}"))
    means = np.exp(np.log(ratios).mean(axis=0))
    rows.append(("geometric mean", *[""] * 5, *map(times, means), ""))
    ratio_names = [f"rnnlm / {name}" for name in theirs]
    header = ("network", "H", "B", "rnnlm, words/s", EAGER, COMPILED, *ratio_names, "of the product")
    return Table(title, f"V = {shape.words:,}, T = {shape.window}; full softmax.", header, rows)


def network(shape: Shape) -> str:
    """Say what kind of network it is."""
    layers = "" if shape.layers == 1 else f", {shape.layers} layers"
    return NETWORKS[shape.cell] + layers + (", tied" if shape.tied else "")


def elman_clusters(bench: Bench) -> Table:
    """Return (c): training with clusters."""
    return clustered_table(bench, "(c) Training, clustered softmax", "elman")


def lstm_clusters(bench: Bench) -> Table:
    """Return (e): the same of an LSTM."""
    return clustered_table(bench, "(e) Training, LSTM, clustered softmax", "lstm")


def clustered_table(bench: Bench, title: str, cell: str) -> Table:
    """Return a table of training with clusters."""
    rows = []
    for streams in bench.sizes.streams:
        default = bench.shape(bench.sizes.medium, streams, None, cell=cell)
        same = replace(default, cutoffs=bench.sizes.cutoffs)
        ours = {OURS: (sides.prepare_ours, default), SAME: (sides.prepare_ours, same)}
        result = bench.contest(f"{title}: {streams}", ours, {EAGER: (sides.prepare_torch, same)})
        chosen = " ".join(map(str, default.settings.cutoffs)) or "none"
        speeds = [speed(result, name) for name in (OURS, SAME, EAGER)]
        rows.append((f"{streams}", chosen, *speeds, *(times(result.ratio(name, EAGER)) for name in ours)))
    theirs = " and ".join(map(str, bench.sizes.cutoffs))
    header = ("B", "our cutoffs", "rnnlm, words/s", f"at {theirs}", EAGER, f"rnnlm / {EAGER}", f"at {theirs} / {EAGER}")
    note = f"V = {default.words:,}, H = {default.hidden}, T = {default.window}; PyTorch's cutoffs are {theirs}."
    return Table(title, note, header, rows)


def layer_table(bench: Bench) -> Table:
    """Return (f): one LSTM layer, without words."""
    rows = []
    for streams in bench.sizes.streams:
        shape = bench.shape(bench.sizes.medium, streams, cell="lstm")
        ours = {OURS: (sides.prepare_our_layers, shape)}
        result = bench.contest(f"LSTM layer, {streams}", ours, {EAGER: (sides.prepare_torch_layers, shape)})
        rows.append((f"{streams}", *(speed(result, name) for name in (OURS, EAGER)), times(result.ratio(OURS, EAGER))))
    note = f"H = {shape.hidden}, T = {shape.window}; forward and back, products with the inputs included."
    return Table("(f) The LSTM layer alone", note, ("B", "rnnlm, words/s", EAGER, f"rnnlm / {EAGER}"), rows)


def large_table(bench: Bench) -> Table:
    """Return (g): the model that takes hours."""
    rows = []
    for streams in bench.sizes.streams:
        shape = bench.shape(bench.sizes.medium, streams, None, cell="lstm", layers=2)
        shape = replace(shape, words=bench.sizes.large)
        say(f"large vocabulary, {streams}")
        result = contest({OURS: (sides.prepare_ours, shape)}, bench.sizes.rounds, bench.sizes.seconds)
        clusters, peak = len(shape.settings.cutoffs) + 1, result.peaks.get(OURS, math.nan)
        hours = EPOCHS * EPOCH / result.rate(OURS) / 3600
        rows.append((f"{streams}", f"{clusters}", speed(result, OURS), f"{hours:.1f}", f"{peak:,.0f}"))
    note = (
        f"V = {shape.words:,}, H = {shape.hidden}, T = {shape.window}; clusters as rnnlm chooses them. "
        f"The text has {shape.text:,} words here; {EPOCH:,} are {4 * EPOCH / 1e6:.0f} MB of int32, memory-mapped."
    )
    header = ("B", "clusters", "words/s", f"hours for {EPOCHS} epochs of {EPOCH / 1e6:.0f} million", "peak memory, MB")
    return Table("(g) LSTM of two layers, large vocabulary", note, header, rows)


def growth_table(bench: Bench) -> Table:
    """Return (h): how training slows down and grows as the vocabulary does."""
    rows, costs = [], []
    for words in bench.sizes.vocabularies:
        say(f"growth, V={words:,}")
        shape = Shape(words, bench.sizes.hidden[0], bench.sizes.streams[0], bench.threads, None, text=bench.sizes.text)
        result = contest({OURS: (sides.prepare_ours, shape)}, bench.sizes.rounds, bench.sizes.seconds)
        costs.append(1 / result.rate(OURS) / math.sqrt(words))
        clusters, peak = len(shape.settings.cutoffs) + 1, result.peaks.get(OURS, math.nan)
        figures = (f"{1e6 / result.rate(OURS):.1f}", f"{costs[-1] / costs[0]:.2f}", f"{peak:,.0f}")
        rows.append((f"{words:,}", f"{clusters}", speed(result, OURS), *figures))
    note = f"H = {shape.hidden}, B = {shape.streams}, T = {shape.window}; clusters as rnnlm chooses them."
    header = ("V", "clusters", "words/s", "µs a word", "the same / sqrt(V), first row 1", "peak memory, MB")
    return Table("(h) Growth with the vocabulary", note, header, rows)


def start_table(bench: Bench) -> Table:
    """Return (i): how long whole processes take."""
    say("start-up")
    with tempfile.TemporaryDirectory() as folder:
        options = ["--hidden", "100", "--epochs", "1", "--model", folder]
        command = [*rnnlm(), "train", str(ROOT / "data/valid.txt"), *options]
        subprocess.run(command, check=True, capture_output=True)
        commands: dict[str, Sequence[str]] = {
            "python -c pass": (sys.executable, "-c", "pass"),
            "python -c 'import numpy'": (sys.executable, "-c", "import numpy"),
            "rnnlm --help": (*rnnlm(), "--help"),
            "rnnlm generate --count 10": (*rnnlm(), "generate", "--count", "10", "--seed", "1", "--model", folder),
        }
        rows = []
        for name, command in commands.items():
            seconds = []
            for _ in range(bench.sizes.starts):
                begin = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True)
                seconds.append(time.perf_counter() - begin)
            rows.append((f"`{name}`", f"{statistics.median(seconds):.3f}"))
    note = f"Whole processes, median of {bench.sizes.starts}."
    return Table("(i) Start-up", note, ("command", "seconds"), rows)


def tokenizing_table(bench: Bench) -> Table:
    """Return (j): raw text to ids."""
    say("tokenizing")
    rows = tokenizing.rows(ROOT / bench.sizes.raw, bench.sizes.tokenized, range(1, bench.threads + 1))
    note = f"Raw text, repeated from {bench.sizes.raw} with new words in each repetition; learning Punkt is counted."
    return Table("(j) Tokenizing and encoding", note, tokenizing.HEADER, list(rows))


def reading_table(bench: Bench) -> Table:
    """Return (k): generation and evaluation."""
    rows = []
    for name, cutoffs in (("full softmax", ()), ("clusters", None)):
        say(f"generation and evaluation, {name}")
        shape = replace(bench.shape(bench.sizes.medium, bench.sizes.streams[0], cutoffs), text=bench.sizes.evaluated)
        entries = {
            f"{bench.sizes.sentences:,} sentences generated": (sides.prepare_generation, shape, bench.sizes.sentences),
            f"a text of {bench.sizes.evaluated:,} words evaluated": (sides.prepare_evaluation, shape),
        }
        result = contest(entries, bench.sizes.rounds, bench.sizes.seconds)
        rows += [(entry, name, speed(result, entry)) for entry in entries]
    note = f"V = {shape.words:,}, H = {shape.hidden}."
    return Table("(k) Generation and evaluation", note, ("what", "softmax", "words/s"), rows)


TABLES = {
    "training": training_table,
    "clusters": elman_clusters,
    "cells": cell_table,
    "lstm-clusters": lstm_clusters,
    "layer": layer_table,
    "product": product_table,  # of those before
    "large": large_table,
    "growth": growth_table,
    "start": start_table,
    "tokenizing": tokenizing_table,
    "reading": reading_table,
}


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results.md", help="the page to write")
    parser.add_argument("--threads", type=int, default=cores(), help="default: the cores that this process may use")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES), help="default: all")
    parser.add_argument("--no-torch", action="store_true", help="leave PyTorch out")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    options = parser.parse_args()
    no_torch = "left out" if options.no_torch else "" if has_torch() else "not installed"
    bench = Bench(QUICK if options.quick else Sizes(), options.threads, no_torch)
    begin = time.perf_counter()
    tables = [TABLES[name](bench) for name in TABLES if name in options.tables]
    tables.sort(key=lambda table: table.title)
    minutes = (time.perf_counter() - begin) / 60
    pages = [table.markdown() for table in (facts(options.threads), *tables)]
    head = f"# Speed\n\nWritten by `make bench` in {minutes:.1f} minutes; [README.md](README.md) says what it means.\n"
    options.output.write_text("\n".join([head, *pages]), "utf-8")
    print(f"Written: {options.output}", file=sys.stderr)


if __name__ == "__main__":
    main()
