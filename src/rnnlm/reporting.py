"""Where a model errs on a text, and how it came to be, in figures: what `rnnlm report` shows."""

from __future__ import annotations

import math
import platform
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import MISSING, dataclass, fields, replace
from itertools import islice, pairwise
from typing import Any, NamedTuple

import numpy as np

from rnnlm import __version__
from rnnlm.api import Model
from rnnlm.checking import flag
from rnnlm.checkpoint import ModelFolder
from rnnlm.corpus import Corpus, Stage, encode_once, reopen, silent
from rnnlm.errors import SettingsError, TextError, no_numbers
from rnnlm.gradflow import Flow, gradient_flow
from rnnlm.model import Array, LanguageModel, Workspace
from rnnlm.run import working
from rnnlm.scoring import Score, sentence_losses, text_figures
from rnnlm.settings import CHOSEN, RunSettings
from rnnlm.shading import Surprisals
from rnnlm.sources import spooled
from rnnlm.text import nltk_version
from rnnlm.vocabulary import SENTENCE_END, UNKNOWN

READ = 50_000  # predictions that are scored at most, from the beginning of the text
BLOCK = 10_000  # of them between two calls of `progress`
PAGE = 400  # words that are shown with their surprisals
COSTLY, CONTEXT = 12, 6  # words in the tables of the most costly ones, and before a surprising word
RANKS = (1, 11, 101, 1_001, 10_001)  # at which a band of frequency begins
PLACES = (1, 2, 3, 4, 6, 11, 21, 41)  # in the sentence, at which a band begins
TEMPERATURES, SENTENCES, SENTENCE_WORDS = (0.5, 0.8, 1.0), 4, 60
FLOW_WORDS, LAGS = 3_000, 32  # errors that are followed, and how far


class Part(NamedTuple):
    """Some of a text's predictions."""

    name: str
    predictions: int
    bits: float  # mean surprisal
    share: float  # of the surprisal of the whole text

    @property
    def perplexity(self) -> float:
        """The perplexity over these predictions."""
        return 2.0**self.bits if self.bits < 1000 else math.inf


class Place(NamedTuple):
    """A word that surprised the model much."""

    before: list[str]  # the words before it, of its sentence
    word: str
    bits: float


@dataclass(frozen=True)
class Report:
    """What a model does on a text."""

    text: str  # what it is called
    predictions: int  # that the text has; all of them are scored, or the first READ
    score: Score
    bands: list[Part]  # by how frequent the word is in training
    positions: list[Part]  # by its place in the sentence; </s> has the one after the last word
    costly: list[Part]  # words that cost most in all
    surprising: list[Place]  # the words that cost most at once
    page: Surprisals  # the beginning of the text
    samples: dict[float, list[str]]  # sentences by temperature
    flow: Flow
    command: list[str]  # that trains such a model, in parts that belong together
    versions: dict[str, str]


def report(
    lm: Model,
    path: str,
    files: Sequence[str] = (),
    *,
    stage: Stage = silent,
    scoring: Callable[[int], Callable[[int], object]] | None = None,
) -> Report:
    """Score a text, or else the one that the model was validated on, and say where it costs much.

    `path` is where the model comes from: its folder keeps the validation text. `scoring` is that of
    `Model.perplexity`. Raises TextError where a text cannot be read, or is not there, ModelError where the model's
    numbers are not finite.
    """
    saved = lm.saved
    with working(lm.threads) as work:
        text, whole, words = _read(lm, path, files, stage)
        corpus = whole.beginning(READ) if whole.predictions > READ else whole
        bits = _surprisals(saved.model, corpus, work, scoring(corpus.predictions) if scoring else None)
        flow = gradient_flow(saved.model, corpus, work, lags=LAGS, words=FLOW_WORDS)
    ids = np.asarray(corpus.ids)
    words = [*words, *saved.vocabulary.decode(ids[len(words) : PAGE])]
    return Report(
        text=text,
        predictions=whole.predictions,
        score=_score(corpus, ids == saved.vocabulary.unknown_id, bits),
        bands=list(_bands(lm, ids, bits)),
        positions=list(_positions(corpus, bits)),
        costly=_costly(lm, ids, bits),
        surprising=_surprising(lm, corpus, bits),
        page=_page(words, bits),
        samples=dict(_samples(lm)),
        flow=flow,
        command=[shlex.join(part) for part in train_command(saved.origin.settings)] if any(saved.origin.keys) else [],
        versions=_versions(),
    )


def _read(lm: Model, path: str, files: Sequence[str], stage: Stage) -> tuple[str, Corpus, list[str]]:
    """Return what a text is called, the text, and its first words as they stand in it, where that is known."""
    saved = lm.saved
    if not files:
        folder = ModelFolder(path)
        kept = reopen(folder.path, *saved.origin.keys, saved.vocabulary) if folder.path.is_dir() else None
        if kept is None:
            remedy = "name a text, as in rnnlm report TEXT"
            raise TextError(f"{path}: the validation text is not kept beside this model; {remedy}")
        return "the validation text", kept[1], []
    with spooled(files) as sources:
        corpus = encode_once(sources, saved.tokenizer, saved.vocabulary, processes=lm.threads, stage=stage)
        with closing(saved.tokenizer.sentences(sources)) as sentences:
            words = (word for sentence in sentences for word in (*sentence, SENTENCE_END))
            return ", ".join(source.name for source in sources), corpus, list(islice(words, PAGE))


def _surprisals(
    model: LanguageModel, corpus: Corpus, work: Workspace, progress: Callable[[int], object] | None
) -> Array:
    """Return -log2 p (N,) of each prediction, the state carried or reset as in training."""
    parts: list[Array] = []
    states = model.start(1)
    for first, last in _blocks(corpus):
        ids = np.asarray(corpus.ids[corpus.offsets[first] : corpus.offsets[last]])
        if model.settings.carry_state:
            found, states = text_figures(model, ids, states, work)
            parts.append(found[0])
        else:
            parts.append(sentence_losses(model, ids, work))
        if progress:
            progress(len(ids))
    bits = np.concatenate(parts).astype(np.float64) / math.log(2)
    if not np.isfinite(bits).all():
        raise no_numbers()
    return np.maximum(bits, 0)


def _blocks(corpus: Corpus) -> Iterator[tuple[int, int]]:
    """Cut a text into runs of sentences, of about BLOCK predictions each."""
    cuts = np.searchsorted(corpus.offsets, np.arange(0, corpus.predictions, BLOCK)).tolist()
    yield from pairwise(dict.fromkeys([*cuts, corpus.sentences]))


def _score(corpus: Corpus, unknown: Array, bits: Array) -> Score:
    """Make the same figures as `rnnlm evaluate`."""
    nats, count = bits * math.log(2), int(unknown.sum())
    words = corpus.predictions - corpus.sentences
    return Score(corpus.sentences, words, count, corpus.predictions, -math.fsum(nats), -math.fsum(nats[~unknown]))


def _part(name: str, which: Array, bits: Array) -> Iterator[Part]:
    """Describe the predictions that `which` (N,) names, if there are any."""
    if count := int(np.count_nonzero(which)):
        total = float(bits[which].sum())
        yield Part(name, count, total / count, total / (float(bits.sum()) or 1))


def _bands(lm: Model, ids: Array, bits: Array) -> Iterator[Part]:
    """Part predictions by the rank of the word in the training text."""
    unknown, last = lm.saved.vocabulary.unknown_id, len(lm.saved.vocabulary)
    yield from _part(SENTENCE_END, ids == 0, bits)
    for low, high in pairwise((*RANKS, max(last, RANKS[-1] + 1))):
        name = f"{low:,} to {min(high, last) - 1:,}"
        yield from _part(name, (ids >= low) & (ids < high) & (ids != unknown), bits)
    yield from _part(UNKNOWN, ids == unknown, bits)


def _positions(corpus: Corpus, bits: Array) -> Iterator[Part]:
    """Part predictions by their place in the sentence, from 1."""
    places = np.arange(1, len(bits) + 1) - np.repeat(corpus.offsets[:-1], np.diff(corpus.offsets))
    for low, high in pairwise((*PLACES, max(int(places.max()) + 1, PLACES[-1] + 1))):
        name = f"{low}" if high == low + 1 else f"{low} to {high - 1}"
        yield from _part(name, (places >= low) & (places < high), bits)


def _costly(lm: Model, ids: Array, bits: Array) -> list[Part]:
    """Find the words that cost most, all their occurrences together."""
    totals = np.bincount(ids, bits)
    found = np.argsort(-totals, kind="stable")[:COSTLY].tolist()
    return [part for word in found for part in _part(lm.saved.vocabulary.words[word], ids == word, bits)]


def _surprising(lm: Model, corpus: Corpus, bits: Array) -> list[Place]:
    """Find the words that cost most at once, with those before them in their sentences."""
    places, words = [], lm.saved.vocabulary.words
    for at in np.argsort(-bits, kind="stable")[:COSTLY].tolist():
        begin = int(corpus.offsets[np.searchsorted(corpus.offsets, at, side="right") - 1])
        *before, word = (words[number] for number in corpus.ids[max(begin, at - CONTEXT) : at + 1].tolist())
        places.append(Place(before, word, float(bits[at])))
    return places


def _page(words: list[str], bits: Array) -> Surprisals:
    """Return the first words of the text, to the end of a sentence if there is one."""
    ends = [at for at, word in enumerate(words, 1) if word == SENTENCE_END]
    return Surprisals(zip(words[: ends[-1] if ends else None], bits.tolist(), strict=False))


def _samples(lm: Model) -> Iterator[tuple[float, list[str]]]:
    """Draw sentences at several temperatures; a model that can draw no word has none."""
    for temperature in TEMPERATURES:
        with suppress(SettingsError):
            yield temperature, lm.generate(SENTENCES, seed=1, temperature=temperature, max_words=SENTENCE_WORDS)


def train_command(settings: RunSettings) -> list[list[str]]:
    """Return the command that trains so, each option with its value: what was given and differs from the default.

    What rnnlm has chosen it chooses again. With a model to begin with, that decides all but the training.
    """
    groups = RunSettings.groups() if settings.initial is None else {"training": None}
    owners: list[Any] = [replace(settings, corpus=("-",), initial=None), *(getattr(settings, name) for name in groups)]
    parts = [["rnnlm", "train", *settings.corpus]]
    if settings.initial is not None:
        parts.append(["--from", settings.initial])
        owners.append(replace(settings.text, pretokenized=False, lines=False, lowercase=False))
    for owner in owners:
        for item in fields(owner):
            value = getattr(owner, item.name)
            of_run = item.name in (*RunSettings.groups(), "corpus", "initial", "chosen")
            same = item.name in settings.chosen if item.name in CHOSEN else value == item.default
            if of_run or same or value is None or item.default is MISSING:
                continue
            for each in value if isinstance(value, tuple) else (value,):
                name = flag(item.name)
                switch = [name if each else f"--no-{name[2:]}"]
                parts.append(switch if isinstance(each, bool) else [name, str(each)])
    return parts


def _versions() -> dict[str, str]:
    return {
        "rnnlm": __version__,
        "Python": platform.python_version(),
        "numpy": np.__version__,
        "NLTK": nltk_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
