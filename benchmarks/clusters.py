"""Measure the constants by which src/rnnlm/clusters.py weighs clusters, on this machine.

    python benchmarks/clusters.py

times the softmax over R rows at n positions, forward and backward, with clipping and the step of SGD, for several n, R
and H, and finds the CALL, PRODUCTS and UPDATE with which

    CALL + R * H * (n * PRODUCTS + UPDATE)

comes nearest to the seconds: by least squares of the relative errors, as the small ones matter as much as the large.
REST stands for all else in a window, for each position and hidden unit. Much of that is done by one thread while the
others wait; so it is found from whole windows of an Elman network on two threads, with few clusters and with many.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import closing

import numpy as np
import threadpoolctl
from machine import print_table

from rnnlm.clusters import choose_cutoffs
from rnnlm.model import (
    Dropout,
    ModelSettings,
    Optimizer,
    Workspace,
    draw_masks,
    initialize,
    joint_norm,
    mean_weights,
    softmax_loss,
)

ROWS = (30, 100, 300, 1000, 3000, 10_000)
POSITIONS = (3, 10, 30, 100, 300, 1000)
HIDDEN = (100, 200)
WINDOWS = ((35, 20), (35, 32), (35, 64))  # T, B
FEW, MANY = 3, 12  # clusters


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
        find_rest(steps, streams, hidden, constants, seconds)
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


def find_rest(steps: int, streams: int, hidden: int, constants: np.ndarray, seconds: float) -> float:
    """Return the REST with which few clusters cost as many times as much as many do as whole windows show."""
    counts, positions = 1e6 / np.arange(1, 10_001), steps * streams
    taken, softmax = [], []
    for number in (FEW, MANY):
        cutoffs = choose_cutoffs(counts, hidden, positions, number)
        taken.append(time_window(steps, streams, hidden, counts, cutoffs, seconds))
        softmax.append(softmax_cost(counts, hidden, positions, cutoffs, constants))
    times = taken[0] / taken[1]
    return float((softmax[0] - times * softmax[1]) / (times - 1) / (positions * hidden))


def softmax_cost(
    counts: np.ndarray, hidden: int, positions: int, cutoffs: tuple[int, ...], constants: np.ndarray
) -> float:
    """Return the seconds that a softmax in clusters costs by these constants."""
    edges, total = [*cutoffs, len(counts)], 0.0
    sizes = [(edges[0] + len(cutoffs), 1.0)]
    sizes += [(stop - start, counts[start:stop].sum() / counts.sum()) for start, stop in itertools.pairwise(edges)]
    for rows, share in sizes:
        total += constants @ (1, rows * hidden * positions * share, rows * hidden)
    return total


def time_window(
    steps: int, streams: int, hidden: int, counts: np.ndarray, cutoffs: tuple[int, ...], seconds: float
) -> float:
    """Return the median seconds that two threads take for a whole window of an Elman network."""
    generator = np.random.default_rng(1)
    model = initialize(ModelSettings(len(counts), hidden, cutoffs=cutoffs), counts, generator)
    optimizer = Optimizer("sgd", model.parameters, model.settings, counts)
    x, y = generator.choice(len(counts), (2, steps, streams), p=counts / counts.sum())
    masks = draw_masks(model.settings, streams, Dropout(0.2, 0.2, 0.2), generator, np.float32)
    with closing(Workspace(2)) as work:

        def step() -> None:
            _, backward = model.losses(x, y, model.start(streams), work, masks)
            gradients = backward(mean_weights(y))
            joint_norm(gradients, work)
            optimizer.step(model.parameters, gradients, 1e-3, work)

        return median_seconds(step, 10 * seconds)


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
