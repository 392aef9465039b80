"""What holds for every test."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from rnnlm.corpus import Corpus
from rnnlm.model import Array, Gradient, Gradients, LanguageModel, Parameters
from rnnlm.sources import Source
from rnnlm.text import TextSettings, Tokenizer
from rnnlm.vocabulary import SENTENCE_END, Vocabulary

PROSE = """\
Dr. Brown met Mr. Jones on Friday. They talked about the weather, as Dr. Brown always does.
Did Mr. Jones listen? He did not!

"I was asleep," said Mr. Jones. "Dr. Brown talks, and I sleep." The wet garden was
very wet. The cats, who don't like rain, were in the house.

Mr. Jones went home. Dr. Brown stayed in the garden. Who knows why? I don't.
"""


def in_full(gradient: Gradient, like: Array) -> Array:
    """Write a gradient's rows out, into zeros of the shape of its parameter."""
    full = np.zeros_like(like)
    for rows, values in gradient:
        full[rows] = values
    return full


def all_in_full(gradients: Gradients, model: LanguageModel) -> Parameters:
    """Write the rows of all gradients out."""
    return {name: in_full(gradient, model.parameters[name]) for name, gradient in gradients.items()}


def corpus_of(sentences: Sequence[Sequence[str]], vocabulary: Vocabulary) -> Corpus:
    """Encode a few sentences in memory."""
    ids = vocabulary.encode(word for sentence in sentences for word in (*sentence, SENTENCE_END))
    offsets = np.cumsum([0, *(len(sentence) + 1 for sentence in sentences)], dtype=np.int64)
    types = len({word for sentence in sentences for word in sentence})
    return Corpus(ids, offsets, int(np.count_nonzero(ids == vocabulary.unknown_id)), types)


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


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Source]:
    """Return a function that writes a file and gives it as a source."""

    def write(content: str | bytes, name: str = "corpus.txt") -> Source:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return Source.of(path)

    return write
