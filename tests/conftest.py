"""What holds for every test."""

import random
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import rnnlm
from rnnlm.corpus import Corpus
from rnnlm.model import Array, Gradient, Gradients, LanguageModel, Parameters
from rnnlm.sources import Source
from rnnlm.text import TextSettings, Tokenizer
from rnnlm.vocabulary import SENTENCE_END, Vocabulary

threadpool_limits(1, user_api="blas")  # tests run side by side, and those of threads start their own

# Started by nohup, or by a shell that has us in its background, we are to ignore some signals. Processes inherit that,
# but no handler: with one that does nothing, those that tests start hear the signals that they are sent.
for _number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, lambda _number, _frame: None)

PROSE = """\
Dr. Brown met Mr. Jones on Friday. They talked about the weather, as Dr. Brown always does.
Did Mr. Jones listen? He did not!

"I was asleep," said Mr. Jones. "Dr. Brown talks, and I sleep." The wet garden was
very wet. The cats, who don't like rain, were in the house.

Mr. Jones went home. Dr. Brown stayed in the garden. Who knows why? I don't.
"""


def sentences(count: int, seed: int = 1) -> str:
    """Return that many small English sentences, a line each."""
    choose = random.Random(seed).choice
    nouns, verbs = ("cat", "dog", "bird", "child", "fish"), ("sleeps", "sings", "sees it", "runs", "eats")
    return "".join(f"the {choose(nouns)} {choose(verbs)} .\n" for _ in range(count))


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
def pictures() -> None:
    """Have the learning curves of trainings drawn, which takes longer than the small trainings of tests do."""


@pytest.fixture(autouse=True)
def _no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave learning curves blank, but where a test asks for `pictures`."""

    def blank(_history: object, path: Path) -> None:
        path.write_text("<svg/>")

    if "pictures" not in request.fixturenames:
        monkeypatch.setattr("rnnlm.run.draw_curve", blank)


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


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a text of 200 short sentences and a small model of it, for tests that take a copy."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "corpus.txt").write_text(sentences(200))
    options = {"pretokenized": True, "hidden": 8, "batch_size": 4, "bptt": 10, "epochs": 2}
    for _ in rnnlm.train(folder / "corpus.txt", folder / "model", threads=1, **options):
        pass
    return folder
