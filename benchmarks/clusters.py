"""Measure the constants by which src/rnnlm/clusters.py weighs clusters, on one core of this machine.

    python benchmarks/clusters.py

times the softmax over R rows at n positions, forward and backward, with clipping and the step of SGD, for several n, R
and H, and finds the CALL, PRODUCTS and UPDATE with which

    CALL + R * H * (n * PRODUCTS + UPDATE)

comes nearest to the seconds: by least squares of the relative errors, as the small ones matter as much as the large.
REST is the median of the seconds for all else in a window, over its positions and hidden units.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import threadpoolctl
from machine import print_table

from rnnlm.model import ModelSettings, Optimizer, Workspace, initialize, joint_norm, softmax_loss

ROWS = (30, 100, 300, 1000, 3000, 10_000)
POSITIONS = (3, 10, 30, 100, 300, 1000)
HIDDEN = (100, 200)
WINDOWS = ((35, 20), (35, 64))  # T, B


def main() -> None:
    """Time all sizes, fit, print the constants and how well they fit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.2, help="to spend on each size (default: 0.2)")
    seconds = parser.parse_args().seconds
    threadpoolctl.threadpool_limits(1, user_api="blas")
    sizes = np.array(list(itertools.product(ROWS, POSITIONS, HIDDEN)))
    print(f"{len(sizes)} sizes, {len(sizes) * seconds:.0f} seconds and a little", file=sys.stderr)
    measured = np.array([time_softmax(*size, seconds) for size in sizes.tolist()])
    constants, fitted = fit(sizes, measured)
    rest = statistics.median(
        time_rest(steps, streams, hidden, seconds) / (steps * streams * hidden)
        for (steps, streams), hidden in itertools.product(WINDOWS, HIDDEN)
    )
    for name, value in zip(("CALL", "PRODUCTS", "UPDATE", "REST"), [*constants, rest], strict=True):
        print(f"{name} = {value:.2g}")
    print(f"\n{1e-9 * 6 / constants[1]:.0f} GFLOP/s in the products, three of two operations for each number of a row.")
    print("\nFitted over measured seconds:\n")
    ratios = (fitted / measured).reshape(len(ROWS), -1)
    print_table(
        ["R", *(f"n={n}, H={H}" for n, H in itertools.product(POSITIONS, HIDDEN))],
        ([f"{rows}", *(f"{ratio:.2f}" for ratio in row)] for rows, row in zip(ROWS, ratios, strict=True)),
    )


def time_softmax(rows: int, positions: int, hidden: int, seconds: float) -> float:
    """Return the median seconds that a softmax of this size takes in a step of training."""
    generator = np.random.default_rng(1)
    V = generator.normal(0, 0.1, (rows, hidden)).astype(np.float32)
    S = generator.normal(0, 0.5, (positions, hidden)).astype(np.float32)
    targets = generator.integers(0, rows, positions)
    parameters = {"U": np.zeros_like(V), "V": V, "c": np.zeros(rows, np.float32)}
    optimizer = Optimizer("sgd", parameters, ModelSettings(rows, hidden), np.ones(rows))
    weights = np.full(positions, 1 / positions, np.float32)
    work = Workspace()

    def step() -> None:
        _, backward = softmax_loss(S, targets, V, parameters["c"], (), work)
        _, dV, dc = backward(weights)
        gradients = {"V": dV, "c": dc}
        joint_norm(gradients, work)
        optimizer.step(parameters, gradients, 1e-3, work)

    return median_seconds(step, seconds)


def time_rest(steps: int, streams: int, hidden: int, seconds: float) -> float:
    """Return the median seconds that a window takes apart from its softmax."""
    generator = np.random.default_rng(1)
    counts = 1e6 / np.arange(1, 10_001)
    model = initialize(ModelSettings(len(counts), hidden), counts, generator)
    optimizer = Optimizer("sgd", model.parameters, model.settings, counts)
    inputs = generator.choice(len(counts), (steps, streams), p=counts / counts.sum())
    errors = generator.normal(0, 1e-4, (steps, streams, hidden)).astype(np.float32)
    work = Workspace()

    def step() -> None:
        _, backward = model.read(inputs, model.start(streams), work)
        gradients = backward(errors)
        joint_norm(gradients, work)
        optimizer.step(model.parameters, gradients, 1e-3, work)

    return median_seconds(step, seconds)


def median_seconds(step: Callable[[], None], seconds: float) -> float:
    """Return the median time of a call, over so many seconds after a first one."""
    step()
    taken: list[float] = []
    while sum(taken) < seconds or len(taken) < 3:
        begin = time.perf_counter()
        step()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def fit(sizes: np.ndarray, measured: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit the constants to seconds (sizes,) measured at sizes (sizes, 3), each R, n, H. Returns them, and the fit."""
    rows, positions, hidden = sizes.T
    terms = np.stack((np.ones(len(sizes)), rows * hidden * positions, rows * hidden), axis=1)  # (sizes, 3)
    constants = np.linalg.lstsq(terms / measured[:, None], np.ones(len(sizes)))[0]
    return constants, terms @ constants


if __name__ == "__main__":
    main()
