"""The search for a few numbers with which something costs least, where no gradient is at hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

FIRST_STEP = 0.5  # share of a value by which it is moved first


def search(
    cost: Callable[..., float],
    grid: Iterable[tuple[float, ...]],
    moved: Callable[[int, float, float], float],
    least_step: float,
) -> tuple[float, tuple[float, ...]]:
    """Return the least cost that was found, and the values that have it.

    The best of a grid is moved by steps of one value at a time, which are halved when none of them lowers the cost. Of
    two that are equally good the first is kept.

    Arguments:
        cost: of values.
        grid: values to begin with.
        moved: returns the value of this number, and of this size, moved by a step, which may be negative.
        least_step: the search ends with steps that are no longer.
    """
    best, values = min(((cost(*values), values) for values in grid), key=lambda found: found[0])
    step = FIRST_STEP
    while step > least_step:
        before = best
        for which, change in itertools.product(range(len(values)), (step, -step)):
            tried = (*values[:which], moved(which, values[which], change), *values[which + 1 :])
            found = cost(*tried)
            if found < best:
                best, values = found, tried
        step = step if best < before else step / 2
    return best, values
