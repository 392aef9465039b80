"""Windows of a corpus: every prediction once, at any place, in little memory."""

import re
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from rnnlm import batches
from rnnlm.batches import IGNORED, windows
from rnnlm.corpus import Corpus
from rnnlm.errors import SettingsError


def corpus_of(lengths, rng=None):
    """Return a corpus of sentences of these lengths, every word another, or drawn from 1 to 8."""
    offsets = np.cumsum([0, *(length + 1 for length in lengths)], dtype=np.int64)
    ids = np.arange(1, offsets[-1] + 1, dtype=np.int32) if rng is None else rng.integers(1, 9, offsets[-1], np.int32)
    ids[offsets[1:] - 1] = 0
    return Corpus(ids, offsets, 0, 0)


SHAPES = [
    ([3, 1, 4, 1, 5], 2, 3),
    ([3, 1, 4, 1, 5], 1, 4),
    ([3, 1, 4, 1, 5], 5, 2),
    ([3, 1, 4, 1, 5], 9, 100),
    ([100, 1, 1, 1], 3, 7),
    ([1, 1, 1, 100], 3, 7),
    ([1, 100, 1], 3, 7),
    ([0, 0, 2, 0], 2, 1),
    ([7], 4, 3),
    ([5] * 50, 8, 6),
    (list(range(40)), 7, 11),
]


@pytest.mark.parametrize(("lengths", "streams", "window"), [*SHAPES, *((shape[0], shape[1], 0) for shape in SHAPES)])
@pytest.mark.parametrize("shuffled", [False, True, "in parts"])
def test_every_prediction_once(lengths, streams, window, shuffled, monkeypatch):
    """In an epoch every prediction occurs once, after the word before it; no window or stream is empty.

    So it is where the text is brought into a random order part by part.
    """
    if shuffled == "in parts":
        monkeypatch.setattr(batches, "PART", 4)
        monkeypatch.setattr(batches, "RUN", 2)
    corpus = corpus_of(lengths)
    epoch = windows(corpus, streams, window, np.random.default_rng(5) if shuffled else None)
    assert epoch.streams == min(streams, len(lengths))
    pieces = list(epoch)
    assert len(pieces) == len(epoch)
    assert all(np.any(piece.targets != IGNORED, axis=1).all() for piece in pieces)
    assert all(piece.inputs.dtype == piece.targets.dtype == np.int32 for piece in pieces)
    assert all(piece.inputs.shape == piece.targets.shape == (len(piece.targets), epoch.streams) for piece in pieces)
    sentences = []
    for stream in range(epoch.streams):
        targets = np.concatenate([piece.targets[:, stream] for piece in pieces])
        inputs = np.concatenate([piece.inputs[:, stream] for piece in pieces])
        assert np.all(inputs[targets == IGNORED] == 0)
        inputs, targets = inputs[targets != IGNORED], targets[targets != IGNORED]
        assert len(targets) > 0
        assert inputs.tolist() == [0, *targets[:-1]]
        sentences += np.split(targets, np.flatnonzero(targets == 0)[:-1] + 1)
    found = [sentence.tolist() for sentence in sentences]
    expected = [sentence.tolist() for sentence in np.split(corpus.ids, corpus.offsets[1:-1])]
    if shuffled:
        assert sorted(found) == sorted(expected)
    else:
        assert found == expected


@pytest.mark.parametrize(("lengths", "streams", "window"), SHAPES)
def test_shape_of_windows(lengths, streams, window):
    """All windows have T steps but the last, which may have fewer; a stream is filled up only at its end."""
    pieces = list(windows(corpus_of(lengths), streams, window, np.random.default_rng(2)))
    assert all(len(piece.targets) == window for piece in pieces[:-1])
    assert 1 <= len(pieces[-1].targets) <= window
    ended = np.concatenate([piece.targets for piece in pieces]) == IGNORED
    assert np.all(np.diff(ended.astype(int), axis=0) >= 0)


def test_streams_have_about_equal_shares():
    """Streams differ by no more than two sentences' lengths, so little is filled up."""
    lengths = np.random.default_rng(3).integers(1, 40, 2000)
    corpus = corpus_of(lengths)
    for rng in (None, np.random.default_rng(1)):
        targets = np.concatenate([piece.targets for piece in windows(corpus, 20, 35, rng)])
        shares = np.count_nonzero(targets != IGNORED, axis=0)
        assert shares.max() - shares.min() <= 2 * 40


def test_streams_are_cut_at_the_nearest_end():
    """A stream begins at the sentence that is nearest to its equal share."""
    (piece,) = windows(corpus_of([3, 2, 2]), 2, 100)
    assert piece.targets[0].tolist() == [1, 5]
    (piece,) = windows(corpus_of([2, 2, 3]), 2, 100)
    assert piece.targets[0].tolist() == [1, 7]


def test_whole_sentences():
    """A window of 0 holds one whole sentence of each stream, shorter ones filled up with IGNORED."""
    epoch = windows(corpus_of([2, 1, 3, 0, 1]), 2, 0)
    assert [piece.targets.tolist() for piece in epoch] == [
        [[1, 6], [2, 7], [0, 8], [IGNORED, 0]],
        [[4, 0], [0, IGNORED]],
        [[IGNORED, 11], [IGNORED, 0]],
    ]
    assert epoch[0].inputs.tolist() == [[0, 0], [1, 6], [2, 7], [0, 8]]


def test_one_sentence_at_a_time():
    """One stream and a window of 0 give the sentences one by one, as the original tutorial trains."""
    corpus = corpus_of([2, 1, 3])
    rows = np.split(corpus.ids, corpus.offsets[1:-1])
    for piece, row in zip(windows(corpus, 1, 0), rows, strict=True):
        assert piece.targets[:, 0].tolist() == row.tolist()
        assert piece.inputs[:, 0].tolist() == [0, *row[:-1]]


def test_short_corpus():
    """A corpus shorter than one window gives one short window, with as many sequences as there are sentences."""
    (piece,) = windows(corpus_of([2, 1]), 20, 35)
    assert piece.targets.tolist() == [[1, 4], [2, 0], [0, IGNORED]]
    assert piece.inputs.tolist() == [[0, 0], [1, 4], [2, 0]]


def test_order_is_drawn_anew():
    """Each epoch draws another order from the generator; the same generator gives the same order."""
    corpus = corpus_of([3] * 30)
    rng = np.random.default_rng(7)
    first, second = windows(corpus, 1, 0, rng), windows(corpus, 1, 0, rng)
    again = windows(corpus, 1, 0, np.random.default_rng(7))
    starts = [[piece.targets[0, 0] for piece in epoch] for epoch in (first, second, again)]
    assert starts[0] == starts[2] != starts[1]
    assert starts[0] != sorted(starts[0])


def test_carried_state_keeps_the_text_whole():
    """With carried state the order is that of the text, even where a generator is given, and it draws nothing."""
    corpus = corpus_of([3] * 30)
    rng = np.random.default_rng(7)
    carried = windows(corpus, 3, 5, rng, carry_state=True)
    for one, other in zip(carried, windows(corpus, 3, 5), strict=True):
        assert np.array_equal(one.targets, other.targets)
    assert rng.bit_generator.state == np.random.default_rng(7).bit_generator.state


@pytest.mark.parametrize("part", [batches.PART, 4])
def test_any_window_at_once(part, monkeypatch):
    """Window n is the same whether or not those before it were made; beyond the last there is none."""
    monkeypatch.setattr(batches, "PART", part)
    monkeypatch.setattr(batches, "RUN", 1)
    corpus = corpus_of(list(range(1, 30)))
    for window in (0, 4):
        epoch = windows(corpus, 4, window, np.random.default_rng(1))
        pieces = list(epoch)
        for number in reversed(range(len(epoch))):
            again = windows(corpus, 4, window, np.random.default_rng(1))[number]
            assert np.array_equal(again.targets, pieces[number].targets)
            assert np.array_equal(again.inputs, pieces[number].inputs)
        for number in (-1, len(epoch)):
            with pytest.raises(IndexError):
                epoch[number]


@pytest.mark.parametrize(("streams", "window"), [(0, 5), (-1, 5), (3, -1)])
def test_sizes_must_be_sizes(streams, window):
    """Sizes that are none are an error that names the options."""
    with pytest.raises(SettingsError, match=r"--batch-size is .* and --bptt"):
        windows(corpus_of([2]), streams, window)


def held_by(make):
    """Return the bytes that stay in use by what `make` makes."""
    tracemalloc.start()
    try:
        made = make()
        return made and tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_an_epoch_is_small(monkeypatch):
    """What an epoch keeps beside the corpus is a few bytes a sentence, and does not grow with a long corpus."""
    rng = np.random.default_rng(1)
    corpus = corpus_of(rng.integers(1, 40, 50_000), rng)
    assert held_by(lambda: windows(corpus, 20, 35, rng)) < 13 * corpus.sentences
    monkeypatch.setattr(batches, "PART", 2**9)
    monkeypatch.setattr(batches, "RUN", 2**5)
    half = corpus_of(rng.integers(1, 40, 25_000), rng)
    held, held_of_half = (held_by(lambda text=text: windows(text, 4, 35, rng)) for text in (corpus, half))
    assert held < held_of_half + 2**13 < 4 * corpus.sentences


def test_a_long_text_is_mixed(monkeypatch):
    """Where a text is brought into a random order part by part, each part has sentences from all over the text."""
    monkeypatch.setattr(batches, "PART", 2**7)
    monkeypatch.setattr(batches, "RUN", 2**3)
    epoch = windows(corpus_of([1] * 1024), 1, 0, np.random.default_rng(2))
    sentences = np.array([piece.targets[0, 0] // 2 for piece in epoch]).reshape(-1, 128)
    assert sorted(sentences.ravel()) == list(range(1024))
    assert all(np.ptp(np.sort(part)[::8]) > 900 for part in sentences)
    assert np.abs([np.corrcoef(part, range(128))[0, 1] for part in sentences]).max() < 0.4


def test_pages_are_given_back(tmp_path, monkeypatch):
    """What was read of a file does not stay in memory, so that a process does not grow with the text."""
    corpus = corpus_of([3] * 400_000)
    mapped = []
    for name in ("ids", "offsets"):
        array = getattr(corpus, name)
        array.tofile(tmp_path / name)
        mapped.append(np.memmap(tmp_path / name, array.dtype, mode="r"))
    monkeypatch.setattr(batches, "RELEASE", 4)
    corpus = Corpus(*mapped, 0, 0)
    epoch = windows(corpus, 1, 4, np.random.default_rng(1))
    for number in range(1_000):
        epoch[number]
    status = Path("/proc/self/smaps")
    if not status.exists():
        pytest.skip("the system does not say what is in memory")
    parts = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", status.read_text(), flags=re.MULTILINE)
    resident = [int(re.search(r"Rss: +(\d+)", part)[1]) for part in parts if str(tmp_path / "ids") in part]
    assert len(resident) == 1
    assert resident[0] < corpus.ids.nbytes / 1024 / 2


@pytest.mark.parametrize(("streams", "windows_between"), [(1, 256), (64, 4), (300, 1)])
def test_pages_are_given_back_sooner_where_more_are_read(streams, windows_between):
    """A window of many streams touches as many pages: they are given back after fewer of those."""
    epoch = windows(corpus_of([3] * 400), streams, 4, np.random.default_rng(1))
    given_back = []
    epoch._maps = [SimpleNamespace(madvise=given_back.append)]
    for _ in range(512):
        epoch[0]
    assert len(given_back) == 512 / windows_between


def calls_and_bytes(epoch, number):
    """Return how many calls it takes to make a window, and how many bytes are held at most."""
    calls = []
    sys.setprofile(lambda _frame, event, _argument: calls.append(event))
    try:
        epoch[number]
    finally:
        sys.setprofile(None)
    tracemalloc.start()
    try:
        epoch[number]
        return len(calls), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("window", [35, 0])
def test_work_of_a_window(window):
    """A window takes a few calls, whatever its size, and a few bytes a position, whatever the size of the corpus."""
    rng = np.random.default_rng(1)
    small, large = corpus_of([12] * 1_000, rng), corpus_of([12] * 50_000, rng)
    calls, held = calls_and_bytes(windows(small, 20, window, rng), 3)
    assert calls < 150
    assert held < 100 * 20 * (window or 13) + 4096
    calls_of_large, held_of_large = calls_and_bytes(windows(large, 20, window, rng), 3)
    assert calls_of_large == calls
    assert held_of_large < held + 1024
    calls_of_wide, _ = calls_and_bytes(windows(large, 400, window, rng), 3)
    assert calls_of_wide == calls
