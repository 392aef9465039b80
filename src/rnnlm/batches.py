"""The (T, B) windows of a corpus that training and evaluation read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnnlm.corpus import Corpus
from rnnlm.errors import SettingsError
from rnnlm.model import IGNORED


class Window(NamedTuple):
    """T consecutive positions of B streams.

    Arguments:
        inputs: (T, B) int32, the word before each target; 0 where a sentence begins.
        targets: (T, B) int32, the words to predict, each sentence ended by 0; IGNORED where a stream has ended.
    """

    inputs: NDArray[np.int32]
    targets: NDArray[np.int32]


class Windows:
    """One epoch of a corpus as windows; any of them is made at once, so an epoch can be entered anywhere.

    The sentences are dealt in order to the streams, each stream a run of neighbors, with about equal numbers of
    words; every prediction is in exactly one window. A stream that ends before the others is filled up with IGNORED.

    Arguments:
        corpus: the encoded text.
        streams: B, how many sentences are read side by side; fewer where there are fewer sentences.
        window: T, how many words each stream has in a window, except in the last; 0 for whole sentences, one of each
            stream in a window.
        order: the order of the sentences; None for that of the corpus.

    Where `columns` is set to some of the streams, windows have those alone, with the steps of all.
    """

    def __init__(
        self, corpus: Corpus, streams: int, window: int, order: NDArray[np.integer[Any]] | None = None
    ) -> None:
        self.streams = min(streams, corpus.sentences)
        self.columns = slice(0, self.streams)  # the streams that are read here; the windows' steps are those of all
        self.window = window
        self._ids = np.asarray(corpus.ids)
        self._offsets = np.asarray(corpus.offsets)
        self._order = order
        # (sentences + 1,) the positions of the epoch at which the ordered sentences begin
        self._begins = self._offsets
        if order is not None:
            self._begins = np.zeros_like(self._offsets)
            np.cumsum(np.diff(self._offsets)[order], out=self._begins[1:])
        sentences = self._dealt_sentences()  # (B + 1,) at which each stream begins
        # In the unit that windows advance by, sentences or positions: where each stream begins and how long it is.
        ends = sentences if window == 0 else self._begins[sentences]
        self._starts, self._lengths = ends[:-1], np.diff(ends)  # (B,), (B,)
        self._longest = int(self._lengths.max())

    def _dealt_sentences(self) -> NDArray[np.int64]:
        """Return (B + 1,) sentences, by their order, at which streams begin, and the end of the last."""
        sentences, streams = len(self._offsets) - 1, self.streams
        shares = np.arange(streams + 1)
        if self.window == 0:
            return shares * sentences // streams
        places = shares * int(self._begins[-1]) // streams
        after = np.searchsorted(self._begins, places)
        before = np.maximum(after - 1, 0)
        nearest = np.where(places - self._begins[before] < self._begins[after] - places, before, after)
        # No stream may be empty: each begins later than the one before, and leaves a sentence to each one behind.
        nearest = np.maximum.accumulate(nearest - shares) + shares
        return np.minimum(nearest, sentences - streams + shares)

    def __len__(self) -> int:
        return -(-self._longest // (self.window or 1))

    def __iter__(self) -> Iterator[Window]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> Window:
        """Return a window by its number, from 0; raises IndexError beyond the last."""
        if not 0 <= number < len(self):
            raise IndexError(f"there is no window {number} among {len(self)}")
        if self.window == 0:
            return self._sentence_window(number)
        steps = np.arange(number * self.window, min((number + 1) * self.window, self._longest))[:, None]  # (T, 1)
        return self._read(self._starts[self.columns] + steps, steps < self._lengths[self.columns])

    def predictions(self, number: int) -> int:
        """Return how many predictions all streams have in a window."""
        if self.window == 0:
            return int(self._sentences(number)[1].sum())
        return int(np.clip(self._lengths - number * self.window, 0, self.window).sum())

    def _sentences(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return where the sentence of this number of every stream begins, and its size, 0 where there is none."""
        going = number < self._lengths  # (B,)
        sentences = np.where(going, self._starts + number, 0)
        begins = self._begins[sentences]
        return begins, np.where(going, self._begins[sentences + 1] - begins, 0)

    def _sentence_window(self, number: int) -> Window:
        """Return the sentence of this number of every stream."""
        begins, sizes = self._sentences(number)
        steps = np.arange(sizes.max())[:, None]  # (T, 1)
        return self._read(begins[self.columns] + steps, steps < sizes[self.columns])

    def _read(self, places: NDArray[np.int64], going: NDArray[np.bool_]) -> Window:
        """Read the ids at positions of the epoch, (T, B), where the streams are still going."""
        places = np.where(going, places, 0)
        if self._order is not None:
            ranks = np.searchsorted(self._begins, places, side="right") - 1
            places += self._offsets[self._order[ranks]] - self._begins[ranks]
        # Before a sentence stands the end of another, 0; before the first, position -1 is the very last end. A stream
        # that has ended reads the beginning of a sentence again, so its input is 0 as well.
        return Window(self._ids[places - 1], np.where(going, self._ids[places], IGNORED))


def windows(
    corpus: Corpus, streams: int, window: int, rng: np.random.Generator | None = None, carry_state: bool = False
) -> Windows:
    """Return one epoch of windows, its sentences in an order drawn from `rng`.

    Without `rng` the order is that of the corpus, as evaluation wants it; so it is with `carry_state`, where the
    text must stay whole. The other arguments are those of `Windows`. Raises SettingsError when they are no sizes.
    """
    if streams < 1 or window < 0:
        raise SettingsError(f"--batch-size is {streams} and --bptt {window}; they must be at least 1 and 0")
    order = None
    if rng is not None and not carry_state:
        small = np.int32 if corpus.sentences < 2**31 else np.int64
        order = rng.permutation(np.arange(corpus.sentences, dtype=small))
    return Windows(corpus, streams, window, order)
