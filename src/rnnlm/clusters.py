"""Where to cut the words into clusters, so that the softmax of model.py costs least.

A softmax over R rows of H numbers at n positions costs, in training, the time of

    CALL + R * H * (n * PRODUCTS + UPDATE)

seconds: what calling it costs, three products for each row and position, and reading and writing each row once to
update it; nothing if n is 0. The expected n of a tail is the window's positions times the tail's share of the text, so
frequent words belong into the head, where all positions pay for them, and rare ones into tails, where few do. All else
in a window of N positions takes

    N * (H * REST + (D - H * H) * PRODUCTS)

seconds, where D numbers in the matrices of the recurrent layers are multiplied as a row of the softmax is. REST was
measured with whole windows of an Elman network of one layer, on two threads, one of which waits for much of the rest:
it has the products of that one's matrix, so that these H * H are not counted again. Of other cells it takes the
elementwise functions to cost no more than tanh, and counts their products.
"""

import numpy as np
from numpy.typing import NDArray

# Seconds on an AMD EPYC; `python benchmarks/clusters.py` measures them. Only their ratios matter here.
CALL = 1.0e-4
PRODUCTS = 1.0e-10
UPDATE = 1.85e-9
REST = 1.4e-7
CANDIDATES = 1000  # ranks at which a cut is considered
# Clusters cost perplexity (docs/benchmarks.md), so unless a number is asked for there are no more than speed is worth:
WHOLE = 2.0  # one softmax if a window costs at most so many times as much as with the best clusters;
NEAR = 1.3  # else the fewest clusters with which it costs at most so many times as much;
MOST = 1000  # and no more than this
PAST = 1.4  # the search ends where a further cluster makes a window cost so many times as much as the best number does


def choose_cutoffs(
    counts: NDArray[np.int64], hidden: int, positions: int, clusters: int | None = None, dense: int | None = None
) -> tuple[int, ...]:
    """Choose the cutoffs of least expected cost, by dynamic programming: the best tails from a cut on, then the head.

    Arguments:
        counts: occurrences of each word, by rank, (V,).
        hidden: H, of the last layer.
        positions: N, predictions in a window.
        clusters: how many, the head included, if there are so many words; None for as many as speed is worth.
        dense: D, numbers in the matrices of the recurrent layers; None for those of an Elman network of one layer.
    """
    words = len(counts)
    # Tails of R rows for words of probability p cost about p R for each word and 1 / R for its share of a slot: least
    # where R is proportional to p^-1/2. So there is a cut to each equal part of the sum of sqrt(p), and the last is V.
    spread = np.cumsum(np.sqrt(np.maximum(counts, 0.5)))
    cuts = np.unique(np.searchsorted(spread, np.linspace(spread[0], spread[-1], CANDIDATES)) + 1)
    share = np.concatenate(([0.0], np.cumsum(np.maximum(counts, 0.5))))
    share /= share[-1]
    rows, expected = cuts[None, :] - cuts[:, None], positions * (share[cuts][None, :] - share[cuts][:, None])
    slot = hidden * (positions * PRODUCTS + UPDATE)
    # How often a window has a target in a tail at all; otherwise the tail costs its slot in the head and no more.
    used = 1 - np.exp(-np.maximum(expected, 0))
    tails = used * (CALL + rows * hidden * UPDATE) + rows * hidden * expected * PRODUCTS + slot  # from cut i to cut k
    tails[rows <= 0] = np.inf
    rest = positions * (hidden * REST + (0 if dense is None else dense - hidden * hidden) * PRODUCTS)
    most = min(clusters or MOST, len(cuts))
    # least[i]: cost of the words from cut i on, in so many tails; choices[j][i]: where the first of them ends
    least = np.where(cuts == words, 0.0, np.inf)
    choices: list[NDArray[np.intp]] = []
    found: list[tuple[float, tuple[int, ...]]] = []  # for 1, 2, ... clusters
    for _ in range(most):
        costs = rest + CALL + cuts * slot + least
        found.append((float(costs.min()), _follow(cuts, int(costs.argmin()), choices)))
        if clusters is None and found[-1][0] > PAST * min(found)[0]:
            break
        through = tails + least[None, :]
        choices.append(through.argmin(axis=1))
        least = through.min(axis=1)
    return _fewest(found) if clusters is None else found[-1][1]


def _fewest(found: list[tuple[float, tuple[int, ...]]]) -> tuple[int, ...]:
    """Return the cutoffs of the fewest clusters that cost little more than the cheapest."""
    cheapest = min(cost for cost, _ in found)
    enough = WHOLE if found[0][0] <= WHOLE * cheapest else NEAR
    return next(cutoffs for cost, cutoffs in found if cost <= enough * cheapest)


def _follow(cuts: NDArray[np.int64], start: int, choices: list[NDArray[np.intp]]) -> tuple[int, ...]:
    """Return the cutoffs that lead from a cut to the last word, by the choices made from the end on."""
    cutoffs = []
    for choice in reversed(choices):
        cutoffs.append(int(cuts[start]))
        start = int(choice[start])
    return tuple(cutoffs)
