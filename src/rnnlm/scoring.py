"""How well a model predicts a text."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from rnnlm.batches import Windows, windows
from rnnlm.corpus import Corpus
from rnnlm.errors import TextError
from rnnlm.model import IGNORED, SENTENCE_END, Array, LanguageModel, Workspace, log_probabilities, runs
from rnnlm.ranks import ONE, Ranks
from rnnlm.text import Line
from rnnlm.vocabulary import UNKNOWN

WINDOW_NUMBERS = 2**24  # the largest array of a window has no more numbers
POSITIONS = 4096  # and more positions than this make its products no faster
RANKED = 16  # positions whose words one thread ranks at a time
STREAMS = 128  # sentences side by side, where each starts from zero


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
    ranks: Ranks = ONE,
) -> Score:
    """Score a text: every prediction once, its loss summed in float64.

    `unknown_id` is the id of `<unk>`, None where no figure without unknown words is wanted. `streams` sequences are
    read side by side, `window` steps at once; both are chosen for speed and change a figure by rounding only, but for
    one case: a model that carries its state from sentence to sentence would begin each further stream in the middle
    of the text from a state of zero, so that 1, the default for such models, alone is exact. `progress` is told the
    number of predictions made since its last call.

    The streams are shared among `ranks`; of one alone each reads all, and scores every so many windows. All have the
    same Score.

    Raises TextError when the text has no sentences.
    """
    if not corpus.sentences:
        raise TextError("there is nothing to score: the text has no sentences; name another file")
    read = _windows(model, corpus, streams, window, ranks)
    states, total, known = model.start(read.columns.stop - read.columns.start), 0.0, 0.0
    for number, (inputs, targets) in enumerate(read):
        if read.streams >= ranks.size or number % ranks.size == ranks.rank:
            (losses, states), _ = model.losses(inputs, targets, states, work, back=False)
            total += float(losses.sum(dtype=np.float64))  # 0 where ignored
            known += float(losses.sum(dtype=np.float64, where=targets != unknown_id)) if unknown_id is not None else 0.0
        else:
            (_, states), _ = model.read(inputs, states, work)
        if progress:
            progress(read.predictions(number))
    total, known = ranks.totals(total, known)
    known = math.nan if unknown_id is None else known
    return Score(corpus.sentences, corpus.words, corpus.unknown, corpus.predictions, -total, -known)


def _windows(model: LanguageModel, corpus: Corpus, streams: int | None, window: int | None, ranks: Ranks) -> Windows:
    """Return the windows of a text to score, with this rank's share of their streams if there are enough for all."""
    positions = positions_at_once(model)
    if streams is None:
        streams = 1 if model.settings.carry_state else min(ranks.size * min(STREAMS, positions), corpus.sentences)
    read = windows(corpus, streams, max(1, positions // -(-streams // ranks.size)) if window is None else window)
    if read.streams >= ranks.size:
        read.columns = ranks.columns(read.streams)
    return read


def positions_at_once(model: LanguageModel, ranks: bool = False) -> int:
    """Return how many positions are read at once: fewer where `ranks` need all words of each, several times."""
    words, cutoffs = model.settings.words, model.settings.cutoffs
    head, *tails = (stop - start for start, stop in itertools.pairwise((0, *cutoffs, words)))
    logits = 4 * words if ranks else head + len(tails) + max(tails, default=0)  # if all targets lie in one tail
    gates = max(len(layer.b) for layer in model.layers)
    return min(POSITIONS, max(1, WINDOW_NUMBERS // max(logits, gates)))


class Scorer(Protocol):
    """Whatever gives sentences probabilities: a model of ours or of another program, a mixture of several."""

    @property
    def words(self) -> Collection[str]:
        """Return what it predicts under its own name: `</s>`, but not `<unk>`."""
        ...

    def log_probs(self, sentences: Sequence[Sequence[str]]) -> list[NDArray[np.float64]]:
        """Return log p (n + 1,), in nats, of each of a sentence's n words and of the `</s>` behind them.

        Each sentence is read by itself. Raises ModelError where a probability is no number.
        """
        ...

    @property
    def carries_state(self) -> bool:
        """Whether it reads a text on from sentence to sentence, where `log_probs` does not."""
        ...

    def next_log_probs(self, words: Sequence[str]) -> dict[str, float]:
        """Return log p, in nats, of each word and of `<unk>` and `</s>` after the words that begin a sentence."""
        ...

    def unknown(self, words: Sequence[str]) -> list[bool]:
        """Say which words are read as `<unk>`, the literal `<unk>` among them."""
        ...

    def lengths(self, words: Sequence[str]) -> list[int]:
        """Return by how many words, itself among them, each word of a sentence and its `</s>` are predicted (n + 1)."""
        ...

    @property
    def numbers(self) -> Mapping[str, int]:
        """Return the number of each word where KenLM prints one: 0 is `<unk>`."""
        ...


class Scored(NamedTuple):
    """A sentence of n words, and what a model says of them."""

    text: str  # the line, as it was read
    words: list[str]  # as they stand in the text
    unknown: list[bool]  # which of them the model reads as <unk>
    log_p: NDArray[np.float64]  # (n + 1,) log p of each word and of </s>, in nats
    spans: list[tuple[int, int]] | None = None  # from where to where in the line each word stands, of raw text
    ranks: NDArray[np.float64] | None = None  # (n + 1,) of each word and of </s>, the likeliest is 1
    entropies: NDArray[np.float64] | None = None  # (n + 1,) of what was expected in their places, in nats
    key: str = ""  # the sentence's name, in formats that have one

    @property
    def total(self) -> float:
        """The sum of log p, in nats."""
        return math.fsum(self.log_p.tolist())

    @property
    def absent(self) -> list[bool]:
        """Which words are not in the vocabulary: as `unknown`, but for a `<unk>` that the text has itself."""
        return [unknown and word != UNKNOWN for word, unknown in zip(self.words, self.unknown, strict=True)]


# From sentences of words to an array (F, n + 1) for each: log p in nats and, if asked for, ranks and entropies in nats.
Reader = Callable[[Sequence[Sequence[str]]], Sequence[NDArray[Any]]]


def scored(lines: Sequence[Line], reader: Reader, unknown: Callable[[Sequence[str]], list[bool]]) -> list[Scored]:
    """Return the probabilities of lines; `unknown` is that of a Scorer."""
    found = reader([line.words for line in lines])
    return [
        Scored(line.text, line.words, unknown(line.words), figures[0], line.spans, *figures[1:])
        for line, figures in zip(lines, found, strict=True)
    ]


def each_sentence(figures: Array, sentences: Sequence[Sequence[str]]) -> list[Array]:
    """Cut the figures (..., N) of all words and ends of sentences into those of each sentence of words."""
    offsets = itertools.accumulate((len(words) + 1 for words in sentences), initial=0)
    return [figures[..., start:stop] for start, stop in itertools.pairwise(offsets)]


def sentence_losses(model: LanguageModel, ids: NDArray[np.int32], work: Workspace) -> Array:
    """Return -log p (N,), in nats, of each word of a text (N,) whose sentences end in `</s>`.

    Each sentence is read by itself from a state of zero. Those of like length are read side by side, which changes a
    figure by rounding only.
    """
    losses: Array = sentence_figures(model, ids, work)[0]
    return losses


def sentence_figures(model: LanguageModel, ids: NDArray[np.int32], work: Workspace, ranks: bool = False) -> Array:
    """Do as `sentence_losses`, and return what `window_figures` gives (F, N)."""
    positions = positions_at_once(model, ranks)
    figures = np.empty((3, len(ids)) if ranks else (1, len(ids)), np.float64 if ranks else model.parameters["V"].dtype)
    # the largest first, as arrays of the workspace need not grow then
    read = sorted(side_by_side(ids, offsets_of(ids), positions), key=lambda window: -window[1].size)
    # each thread takes windows of its own, with arrays of its own; a window alone is shared by all threads
    spare = [work] if len(read) == 1 else [Workspace() for _ in range(work.threads)]

    def fill(window: tuple[Array, Array, Array]) -> None:
        (places, x, y), own = window, spare.pop()
        states, going = model.start(x.shape[1]), y != IGNORED
        if len(x) > positions:  # one sentence, in parts
            figures[:, places[:, 0]], _ = text_figures(model, y[:, 0], states, own, ranks)
        else:
            found, _ = window_figures(model, x, y, states, own, ranks)
            figures[:, places[going]] = found[:, going]
        spare.append(own)

    work.each(fill, read)
    return figures


def offsets_of(ids: Array) -> Array:
    """Say where each sentence of ids (N,) begins, and where the last ends, which may be a part of one."""
    begins = np.ones(len(ids) + 1, bool)
    begins[1:-1] = ids[:-1] == SENTENCE_END
    return np.flatnonzero(begins)


def side_by_side(ids: Array, offsets: Array, positions: int) -> Iterator[tuple[Array, Array, Array]]:
    """Lay sentences of like length side by side: of ids (N,), those that begin at offsets (sentences + 1,).

    Yields where the words lie in the ids, each word's predecessor x and the words y, all (T, B), until all sentences
    have come. There are `positions` in x, unless a sentence alone has more. Where one has ended, y is IGNORED.
    """
    lengths = np.diff(offsets)
    order, place = np.argsort(-lengths, kind="stable"), 0
    while place < len(order):
        longest = lengths[order[place]]
        numbers = order[place : place + max(1, positions // longest)]
        place += len(numbers)
        steps = np.arange(longest)[:, None]
        going = steps < lengths[numbers]
        places = np.where(going, offsets[numbers] + steps, 0)
        y = np.where(going, ids[places], IGNORED)
        x = np.full_like(y, SENTENCE_END)
        x[1:] = np.maximum(y[:-1], SENTENCE_END)
        yield places, x, y


def word_losses(model: LanguageModel, ids: NDArray[np.int32], work: Workspace) -> NDArray[np.float32]:
    """Return -log p (N,), in nats, of each word of a text (N,) whose sentences end in `</s>`."""
    losses: NDArray[np.float32] = text_figures(model, ids, model.start(1), work)[0][0]
    return losses


def text_figures(
    model: LanguageModel, ids: NDArray[np.int32], states: Array, work: Workspace, ranks: bool = False
) -> tuple[Array, Array]:
    """Return what `window_figures` gives, (F, N), for a text (N,) read from states (L, M, 1, H), and those after."""
    positions = positions_at_once(model, ranks)
    read = np.concatenate(([SENTENCE_END], ids[:-1])).astype(np.int32)
    result = []
    for part in runs(0, len(ids), positions):
        found, states = window_figures(model, read[part, None], ids[part, None], states, work, ranks)
        result.append(found[:, :, 0].copy())
    return np.concatenate(result, axis=1), states


def window_figures(
    model: LanguageModel, x: Array, y: Array, states: Array, work: Workspace, ranks: bool = False
) -> tuple[Array, Array]:
    """Return what is known of each target of a window, and the states after it.

    Takes words x and targets y (T, B), some of them perhaps IGNORED, and the states before (L, M, B, H). The figures
    (F, T, B) are -log p in nats and, with `ranks`, the target's rank among all words, from 1, and the entropy of the
    distribution in nats; F is 1 or 3. Of words equally likely the one with the lower id is before the other.
    """
    if not ranks:
        (losses, states), _ = model.losses(x, y, states, work, back=False)
        return losses[None], states
    (s, states), _ = model.read(x, states, work)
    V, c, cutoffs = model.parameters["V"], model.parameters["c"], model.settings.cutoffs
    log_p = log_probabilities(s.reshape(y.size, -1), V, c, cutoffs, work)  # (N, words)
    targets, result = np.maximum(y.reshape(-1), 0), np.empty((3, y.size))

    def fill(rows: slice) -> None:
        result[:, rows] = _ranked(log_p[rows], targets[rows])

    work.each(fill, runs(0, y.size, RANKED))
    return result.reshape(3, *y.shape), states


def _ranked(log_p: Array, y: Array) -> tuple[Array, Array, Array]:
    """Return -log p and the ranks of targets y (n,) in log p (n, V), and the entropies."""
    own = log_p[np.arange(len(y)), y]
    before = np.count_nonzero(log_p > own[:, None], axis=1)
    ties = log_p == own[:, None]
    alike = [np.count_nonzero(row[:word]) for row, word in zip(ties, y, strict=True)]  # and of lower ids
    entropy = -np.einsum("nv,nv->n", np.exp(log_p), log_p)
    return -own, 1 + before + alike, entropy
