"""Where to cut the words into clusters, so that the softmax of model.py costs least.

A softmax over R rows of H numbers at n positions costs, in training, the time of

    CALL + R * H * (n * PRODUCTS + UPDATE)

seconds: what calling it costs, three products for each row and position, and reading and writing each row once to
update it. The expected n of a tail is the window's positions times the tail's share of the text, so frequent words
belong into the head, where all positions pay for them, and rare ones into tails, where few do.
"""

import numpy as np
from numpy.typing import NDArray

# Seconds on one core; `python benchmarks/clusters.py` measures them. Only their ratios matter here.
CALL = 2.5e-4
PRODUCTS = 6 / 100e9
UPDATE = 2e-9
CANDIDATES = 200  # ranks at which a cut is considered, evenly spaced in their logarithms


def choose_cutoffs(
    counts: NDArray[np.int64], hidden: int, positions: int, clusters: int | None = None
) -> tuple[int, ...]:
    """Choose the cutoffs of least expected cost, by dynamic programming over how many clusters follow a cut.

    Arguments:
        counts: occurrences of each word, by rank, (V,).
        hidden: H.
        positions: N, predictions in a window.
        clusters: how many, the head included; None for the best number. Fewer come back where there are fewer words.
    """
    words = len(counts)
    cuts = np.unique(np.geomspace(1, words, CANDIDATES).round().astype(int))  # ascending, the last is V
    share = np.concatenate(([0.0], np.cumsum(np.maximum(counts, 0.5))))
    share /= share[-1]
    rows, expected = cuts[None, :] - cuts[:, None], positions * (share[cuts][None, :] - share[cuts][:, None])
    slot = hidden * (positions * PRODUCTS + UPDATE)
    tails = CALL + rows * hidden * (expected * PRODUCTS + UPDATE) + slot  # of words from cut i to cut k
    tails[rows <= 0] = np.inf
    heads = CALL + cuts * slot
    most = len(cuts) - 1 if clusters is None else min(clusters, len(cuts)) - 1
    # least[i]: cost of the words from cut i on, in so many tails; choice[j][i]: where the first of them ends
    least = np.where(cuts == words, 0.0, np.inf)
    best: tuple[int, ...] = ()
    best_cost = np.inf
    choices: list[NDArray[np.intp]] = []
    for number in range(most + 1):
        cost = heads + least
        wanted = clusters is None or number == most
        if wanted and cost.min() < best_cost:
            best_cost, best = cost.min(), _follow(cuts, int(cost.argmin()), choices)
        elif clusters is None and number > 0:
            break  # the cost is convex in the number of tails: more of them only cost more
        through = tails + least[None, :]
        choices.append(through.argmin(axis=1))
        least = through.min(axis=1)
    return best


def _follow(cuts: NDArray[np.int64], start: int, choices: list[NDArray[np.intp]]) -> tuple[int, ...]:
    """Return the cutoffs that lead from a cut to the last word, by the choices made from the end on."""
    cutoffs = []
    for choice in reversed(choices):
        cutoffs.append(int(cuts[start]))
        start = int(choice[start])
    return tuple(cutoffs)
