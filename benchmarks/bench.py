"""Measure the speed of rnnlm on this machine, beside PyTorch where it is installed, and write a Markdown page.

    python benchmarks/bench.py

takes some minutes and writes benchmarks/results.md; README.md beside it says what each table means.
"""

import argparse
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import sides
import tokenise
from contest import Entry, Result, contest
from machine import ROOT, Table, cores, facts, has_torch, rnnlm
from sides import Shape

OURS, OWN, SHARED, TORCH_PRODUCT = "ours", "one BLAS thread in each of ours", "BLAS's own threads", "PyTorch's threads"
EAGER, COMPILED = "PyTorch", "torch.compile"


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
    vocabularies: tuple[int, ...] = (10_000, 50_000, 200_000, 800_000)
    starts: int = 10  # processes
    tokenised: int = 1_000_000
    sentences: int = 1000
    evaluated: int = 100_000


QUICK = Sizes(1, 0.01, 300, 5000, (10, 20), (2, 4), (30, 100), (300, 1200), 1, 2000, 20, 1000)


@dataclass
class Bench:
    """A run: how much is measured, on how many threads, why PyTorch is missing (None: it is not), and products."""

    sizes: Sizes
    threads: int
    missing: str | None
    products: dict[str, list[float]] = field(default_factory=dict)  # operations a second, all that were measured

    def shape(self, hidden: int, streams: int, cutoffs: tuple[int, ...] | None = ()) -> Shape:
        """Return a shape with the usual vocabulary and text."""
        return Shape(self.sizes.words, hidden, streams, self.threads, cutoffs, text=self.sizes.text)

    def contest(self, entries: dict[str, Entry]) -> Result:
        """Let contestants take turns; the matrix product has its turns among them."""
        theirs: dict[str, Entry] = {TORCH_PRODUCT: (sides.prepare_torch_product, self.threads)}
        products: dict[str, Entry] = {
            OWN: (sides.prepare_product, self.threads, True),
            SHARED: (sides.prepare_product, self.threads, False),
        }
        result = contest({**products, **entries, **({} if self.missing else theirs)}, self.sizes.rounds, self.sizes.seconds)
        for name in (*products, *theirs):
            if name in result.rates:
                self.products.setdefault(name, []).extend(result.rates[name])
        return result

    def cell(self, result: Result, name: str) -> str:
        """Write a contestant's words a second, or why there are none."""
        if name in result.rates:
            return f"{result.rate(name):,.0f}"
        return result.failures.get(name) or self.missing or "-"
