"""How well a model predicts a text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rnnlm.batches import windows
from rnnlm.corpus import Corpus
from rnnlm.errors import TextError
from rnnlm.model import IGNORED, SENTENCE_END, LanguageModel, Workspace

WINDOW_NUMBERS = 2**24  # the output layer holds so many numbers at once, V for each position of a window
POSITIONS = 1024  # and more positions than this make its products no faster
STREAMS = 64  # sentences side by side, where each starts from zero


@dataclass(frozen=True)
class Score:
    """How well a text was predicted.

    A prediction is that of a word or of the `</s>` which ends a sentence; `<s>` is never predicted. An unknown word is
    predicted as `<unk>`, one word with the probability of all that it stands for, which flatters a small vocabulary:
    so there is a second figure, in which predictions of `<unk>` count neither in the sum nor in the number. The words
    after an unknown one count in both, and `<unk>` is what they are predicted from.
    """

    sentences: int
    words: int  # `</s>` is none
    unknown: int  # words that are read as <unk>
    predictions: int  # words + sentences
    log_likelihood: float  # log of the text's probability, in nats
    known_log_likelihood: float  # the same without the predictions of <unk>; NaN where they were not told apart

    @property
    def perplexity(self) -> float:
        """The inverse of a prediction's probability, geometric mean: e^(-log_likelihood / predictions)."""
        return _perplexity(self.log_likelihood, self.predictions)

    @property
    def perplexity_excluding_unknown(self) -> float:
        """The same over the predictions whose target is not `<unk>`."""
        return _perplexity(self.known_log_likelihood, self.predictions - self.unknown)

    @property
    def bits_per_prediction(self) -> float:
        """The mean of -log2 p over all predictions, those of `</s>` included: the logarithm of `perplexity`."""
        return -self.log_likelihood / self.predictions / math.log(2)

    def to_json(self) -> dict[str, float | int | None]:
        """Return what `rnnlm evaluate --json` prints; None for a figure that is no finite number."""
        figures = {
            name: getattr(self, name) for name in ("perplexity", "perplexity_excluding_unknown", "bits_per_prediction")
        }
        finite = {name: figure if math.isfinite(figure) else None for name, figure in figures.items()}
        counts = {name: getattr(self, name) for name in ("sentences", "words", "unknown", "predictions")}
        return {**finite, **counts}


def _perplexity(log_likelihood: float, predictions: int) -> float:
    try:
        return math.exp(-log_likelihood / predictions)
    except OverflowError:
        return math.inf


def perplexity(
    model: LanguageModel,
    corpus: Corpus,
    work: Workspace,
    *,
    unknown_id: int | None = None,
    streams: int | None = None,
    window: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Score:
    """Score a text: every prediction once, its loss summed in float64.

    `unknown_id` is the id of `<unk>`, None where no figure without unknown words is wanted. `streams` sequences are
    read side by side, `window` steps at once; both are chosen for speed and change a figure by rounding only, but for
    one case: a model that carries its state from sentence to sentence would begin each further stream in the middle
    of the text from a state of zero, so that 1, the default for such models, alone is exact. `progress` is told the
    number of predictions made since its last call.

    Raises TextError when the text has no sentences.
    """
    if not corpus.sentences:
        raise TextError("there is nothing to score: the text has no sentences; name another file")
    positions = _positions(model)
    if streams is None:
        streams = 1 if model.settings.carry_state else min(STREAMS, positions, corpus.sentences)
    read = windows(corpus, streams, max(1, positions // streams) if window is None else window)
    states, total, known = model.start(read.streams), 0.0, 0.0
    for inputs, targets in read:
        (losses, states), _ = model.losses(inputs, targets, states, work)
        total += float(losses.sum(dtype=np.float64))  # 0 where ignored
        known += float(losses.sum(dtype=np.float64, where=targets != unknown_id)) if unknown_id is not None else 0.0
        if progress:
            progress(int(np.count_nonzero(targets != IGNORED)))
    known = math.nan if unknown_id is None else known
    return Score(corpus.sentences, corpus.words, corpus.unknown, corpus.predictions, -total, -known)


def _positions(model: LanguageModel) -> int:
    """Return how many positions are read at once."""
    return min(POSITIONS, max(1, WINDOW_NUMBERS // model.settings.words))


def sentence_losses(
    model: LanguageModel, sentences: Sequence[NDArray[np.int32]], work: Workspace
) -> list[NDArray[np.float32]]:
    """Return -log p, in nats, of each word of sentences, read each by itself from a state of zero.

    A sentence is its ids (n,), the last of which is `</s>`; so are its losses. Sentences of like length are read side
    by side, which changes a figure by rounding only.
    """
    order = sorted(range(len(sentences)), key=lambda number: len(sentences[number]), reverse=True)
    losses, positions, place = [np.empty(0, np.float32)] * len(sentences), _positions(model), 0
    while place < len(order):
        longest = len(sentences[order[place]])
        if longest > positions:  # in parts
            losses[order[place]] = word_losses(model, sentences[order[place]], work)
            place += 1
            continue
        numbers = order[place : place + max(1, positions // longest)]
        place += len(numbers)
        y = np.full((longest, len(numbers)), IGNORED, np.int32)
        for stream, number in enumerate(numbers):
            y[: len(sentences[number]), stream] = sentences[number]
        x = np.full_like(y, SENTENCE_END)
        x[1:] = np.maximum(y[:-1], SENTENCE_END)
        (found, _), _ = model.losses(x, y, model.start(len(numbers)), work)
        for stream, number in enumerate(numbers):
            losses[number] = found[: len(sentences[number]), stream].copy()
    return losses


def word_losses(model: LanguageModel, ids: NDArray[np.int32], work: Workspace) -> NDArray[np.float32]:
    """Return -log p (N,), in nats, of each word of a text (N,) whose sentences end in `</s>`."""
    positions = _positions(model)
    states, losses = model.start(1), np.empty(len(ids), np.float32)
    read = np.concatenate(([SENTENCE_END], ids[:-1])).astype(np.int32)
    for start in range(0, len(ids), positions):
        part = slice(start, start + positions)
        (found, states), _ = model.losses(read[part, None], ids[part, None], states, work)
        losses[part] = found[:, 0]
    return losses
