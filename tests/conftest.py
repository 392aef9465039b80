"""What holds for every test."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rnnlm.sources import Source
from rnnlm.text import TextSettings, Tokenizer

PROSE = """\
Dr. Brown met Mr. Jones on Friday. They talked about the weather, as Dr. Brown always does.
Did Mr. Jones listen? He did not!

"I was asleep," said Mr. Jones. "Dr. Brown talks, and I sleep." The wet garden was
very wet. The cats, who don't like rain, were in the house.

Mr. Jones went home. Dr. Brown stayed in the garden. Who knows why? I don't.
"""


@pytest.fixture(autouse=True)
def _numbers_stay_finite() -> Iterator[None]:
    """Make an overflow, a division by zero or a NaN an error wherever it happens."""
    with np.errstate(divide="raise", over="raise", invalid="raise"):
        yield


@pytest.fixture
def raw(tmp_path: Path) -> Tokenizer:
    """Return a tokenizer of raw text that has learned from some prose."""
    path = tmp_path / "prose.txt"
    path.write_text(PROSE * 4, "utf-8")
    return Tokenizer.learn([Source.of(path)], TextSettings())
