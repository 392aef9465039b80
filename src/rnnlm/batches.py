"""The (T, B) windows of a corpus that training and evaluation read."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnnlm.corpus import Corpus
from rnnlm.errors import SettingsError
from rnnlm.model import IGNORED

PART = 2**16  # sentences that are brought into a random order at once
RUN = 2**9  # neighboring sentences of the text that are of the same part: their offsets are on one page of memory
RELEASE = 256  # windows of one stream after which the pages of memory that were read are given back


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
        rng: draws the order of the sentences; None for that of the corpus.

    Where `columns` is set to some of the streams, windows have those alone, with the steps of all.
    """

    def __init__(self, corpus: Corpus, streams: int, window: int, rng: np.random.Generator | None = None) -> None:
        self.streams = min(streams, corpus.sentences)
        self.columns = slice(0, self.streams)  # the streams that are read here; the windows' steps are those of all
        self.window = window
        self._ids = np.asarray(corpus.ids)
        self._maps = [found for array in (corpus.ids, corpus.offsets) if (found := _map_of(array))]
        self._read_windows = 0
        offsets = np.asarray(corpus.offsets)
        self._order = _Shuffled(offsets, rng) if rng else None
        self._begins = self._order or offsets  # by sentence of the epoch: the position of the epoch at which it begins
        sentences = self._dealt_sentences(corpus.sentences)  # (B + 1,) at which each stream begins
        # In the unit that windows advance by, sentences or positions: where each stream begins and how long it is.
        ends = sentences if window == 0 else self._begins[sentences]
        self._starts, self._lengths = ends[:-1], np.diff(ends)  # (B,), (B,)
        self._longest = int(self._lengths.max())

    def _dealt_sentences(self, sentences: int) -> NDArray[np.int64]:
        """Return (B + 1,) sentences, by their order, at which streams begin, and the end of the last."""
        streams = self.streams
        shares = np.arange(streams + 1)
        if self.window == 0:
            return shares * sentences // streams
        places = shares * len(self._ids) // streams
        after = self._begins.searchsorted(places)
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
        self._read_windows += 1
        if self._read_windows % max(1, RELEASE // self.streams) == 0:
            for pages in self._maps:
                pages.madvise(mmap.MADV_DONTNEED)
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
        if self._order:
            places = self._order.in_text(places)
        # Before a sentence stands the end of another, 0; before the first, position -1 is the very last end. A stream
        # that has ended reads the beginning of a sentence again, so its input is 0 as well.
        return Window(self._ids[places - 1], np.where(going, self._ids[places], IGNORED))


class _Shuffled:
    """Where the sentences of a text are when they are read in a random order, of which only the parts in use are held.

    A text of up to PART sentences is one part, with a random order. A longer one has as many parts as it must, each of
    them runs of neighboring sentences from all over the text; an epoch reads one part after the other. So what is held
    grows with the number of streams, and not with the text.

    Arguments:
        offsets: (sentences + 1,) where each begins in the text, and the end.
        rng: draws the order.
    """

    def __init__(self, offsets: NDArray[np.int64], rng: np.random.Generator) -> None:
        self._offsets = offsets
        self._sentences = len(offsets) - 1
        self._parts = max(1, -(-self._sentences // PART))
        self._rng = rng
        self._seed = int(rng.integers(2**63)) if self._parts > 1 else 0
        runs = np.minimum(np.arange(-(-self._sentences // RUN) + 1) * RUN, self._sentences)
        # (parts + 1,) the sentences and positions of the epoch at which parts begin, and the ends
        self._first, self._places = self._sums(np.diff(runs)), self._sums(np.diff(offsets[runs]))
        self._held = np.arange(0)  # parts, rising; one after the other:
        self._order = np.arange(0)  # their sentences, by number in the text
        self._begins = np.arange(0)  # where they begin in the epoch, and the end of the last
        self._gaps = np.arange(0)  # for each part: how many sentences of the epoch before it are not held
        self._hold(np.arange(1))  # the only part draws from `rng` itself, which others may draw from next

    def _sums(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return what all parts before have together of a count of every run."""
        return np.cumsum([0, *(counts[part :: self._parts].sum() for part in range(self._parts))])

    def __getitem__(self, sentences: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the positions of the epoch at which sentences of it begin; the one behind the last, where it ends."""
        parts = np.minimum(self._first.searchsorted(sentences, "right"), self._parts) - 1
        self._hold(parts)
        found: NDArray[np.int64] = self._begins[sentences - self._gaps[self._held.searchsorted(parts)]]
        return found

    def searchsorted(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the first sentences of the epoch that begin at positions of it or later."""
        parts = np.minimum(self._places.searchsorted(places, "right"), self._parts) - 1
        self._hold(parts)
        found: NDArray[np.int64] = self._begins.searchsorted(places) + self._gaps[self._held.searchsorted(parts)]
        return found

    def in_text(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the positions of the text at which positions of the epoch are."""
        self._hold(self._places.searchsorted(places, "right") - 1)
        held = self._begins.searchsorted(places, "right") - 1
        found: NDArray[np.int64] = places + (self._offsets[self._order[held]] - self._begins[held])
        return found

    def _hold(self, parts: NDArray[np.int64]) -> None:
        """Hold parts, and let go of the others where one is not held yet."""
        if self._held.size == self._parts or np.isin(parts, self._held).all():
            return
        parts = np.unique(parts)
        sizes = np.diff(self._first)
        ends = np.cumsum(sizes[self._held])[:-1]
        pairs = zip(np.split(self._order, ends), np.split(self._begins[:-1], ends), strict=True)
        held = dict(zip(self._held.tolist(), pairs, strict=False))  # where none is held, there is an empty pair
        drawn = [held.get(part) or self._drawn(part) for part in parts.tolist()]
        self._held = parts
        self._order = np.concatenate([order for order, _ in drawn])
        self._begins = np.concatenate([*(begins for _, begins in drawn), self._places[-1:]])
        self._gaps = self._first[parts] - (np.cumsum(sizes[parts]) - sizes[parts])

    def _drawn(self, part: int) -> tuple[NDArray[np.integer[Any]], NDArray[np.int64]]:
        """Draw the order of a part; returns its sentences, and where they begin in the epoch."""
        runs = np.arange(part * RUN, self._sentences, self._parts * RUN)
        sentences = (runs[:, None] + np.arange(RUN)).reshape(-1)
        small = np.int32 if self._sentences < 2**31 else np.int64
        rng = self._rng if self._parts == 1 else np.random.default_rng([self._seed, part])
        order = rng.permutation(sentences[sentences < self._sentences].astype(small))
        lengths = self._offsets[order + 1] - self._offsets[order]
        return order, self._places[part] + np.cumsum(lengths) - lengths


def _map_of(array: NDArray[Any]) -> mmap.mmap | None:
    """Return the map of a file that holds an array, if one does and its pages can be given back."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) and hasattr(base, "madvise") else None


def windows(
    corpus: Corpus, streams: int, window: int, rng: np.random.Generator | None = None, carry_state: bool = False
) -> Windows:
    """Return one epoch of windows, its sentences in an order drawn from `rng`.

    Without `rng` the order is that of the corpus, as evaluation wants it; so it is with `carry_state`, where the
    text must stay whole. The other arguments are those of `Windows`. Raises SettingsError when they are no sizes.
    """
    if streams < 1 or window < 0:
        raise SettingsError(f"--batch-size is {streams} and --bptt {window}; they must be at least 1 and 0")
    return Windows(corpus, streams, window, None if carry_state else rng)
