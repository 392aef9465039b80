"""What holds for every test."""

from collections.abc import Iterator

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _numbers_stay_finite() -> Iterator[None]:
    """Make an overflow, a division by zero or a NaN an error wherever it happens."""
    with np.errstate(divide="raise", over="raise", invalid="raise"):
        yield
