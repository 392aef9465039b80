"""Scores of the hypotheses of n-best lists, and the best of each list.

Hypotheses begin alike, and a beginning is read once: sorted, they are the leaves of a tree, which is walked level by
level. The streams of a level are the different beginnings of that many words, of all the hypotheses of a group; the
output layer is asked once for each different word that follows one of them. Equal hypotheses are one leaf.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from rnnlm import vocabulary
from rnnlm.adapting import Adapting
from rnnlm.api import Model
from rnnlm.errors import SettingsError, TextError, no_numbers
from rnnlm.mixture import Mixture
from rnnlm.model import IGNORED, SENTENCE_END, Array, LanguageModel, Workspace, runs, softmax_loss
from rnnlm.nbest import Format, Hypothesis, NBestFile, Weights
from rnnlm.run import working
from rnnlm.scoring import positions_at_once
from rnnlm.settings import RescoringSettings
from rnnlm.text import folded

GROUP = 2**14  # hypotheses that are walked together, the most streams of a level: most levels have a third of them
GROUP_WORDS = 2**18  # words in them, after which no further list is taken
GROUP_NUMBERS = 2**22  # numbers in their states, at most

ID = np.dtype(">i4")  # of a word, in keys
List = tuple[NBestFile, list[Hypothesis]]
Key = TypeVar("Key", bytes, tuple[str, ...])


AnyModel = Model | Mixture


@dataclass(frozen=True)
class Found:
    """What was seen of some lists before they are scored."""

    lists: int
    hypotheses: int
    words: int
    unknown: int  # words that the model does not know
    again: tuple[int, str] | None = None  # the first ID that comes again after others, and its line


@dataclass(frozen=True)
class Rescored:
    """A list with the scores of its hypotheses."""

    file: NBestFile
    hypotheses: list[Hypothesis]
    scores: list[float]  # in the format's unit
    best: int  # the place of the first that has the greatest total


def weights_for(format: Format, settings: RescoringSettings) -> Weights:
    """Return the weights for lists of a format; raises SettingsError where there is no old score."""
    old = settings.old_weight
    if old is not None and format.old_weight is None:
        what = "a table without the column score" if format.name == "tsv" else f"the format {format.name}"
        raise SettingsError(f"--old-weight has no effect on {what}, which has no score; leave it out")
    default = format.old_weight or 0.0
    return Weights(settings.weight, default if old is None else old, settings.word_penalty)


def look(file: NBestFile, lm: AnyModel, keys: set[str]) -> Found:
    """Read all of a file before anything of it is scored; raises TextError where it is no list, or has no IDs.

    `keys` are the IDs of the files before, to which those of this one are added.
    """
    lists = hypotheses = words = unknown = odd = 0
    example, again = "", None
    above = 1 + (file.format.header is not None)  # where the first hypothesis is; formats with IDs have no blank lines
    for group in file.lists():
        again = again or ((above + hypotheses, group[0].key) if group[0].key in keys else None)
        keys.add(group[0].key)
        lists += 1
        hypotheses += len(group)
        key = group[0].key
        if not any(map(str.isdigit, key)) and not _unknown(lm, [key])[0]:
            odd, example = odd + 1, example or key
        all_words = [word for hypothesis in group for word in hypothesis.words]
        words, unknown = words + len(all_words), unknown + sum(_unknown(lm, all_words))
    if file.format.has_keys and odd > lists / 2:  # then they are the first words of sentences
        message = f"the lines seem to have no IDs, as they begin with words such as {example!r}"
        raise TextError(f"{file.source.name}: {message}; begin every line with an ID, which has a digit, and a blank")
    return Found(lists, hypotheses, words, unknown, again)


def rescore(
    files: Sequence[NBestFile], lm: AnyModel, settings: RescoringSettings, reader: Adapting | None = None
) -> Iterator[Rescored]:
    """Yield the lists of files of one format with their scores, in order.

    A `Model` reads beginnings once; another scorer is asked for each different hypothesis of some lists once. With a
    `reader`, made of the model, that scores them, and learns from the best of each list; it decides whether the state
    is carried.

    Raises what `NBestFile.lists` and `weights_for` raise, ModelError where a score is no number, and SettingsError
    where what carries no state shall read a list on from the one before.
    """
    weights = weights_for(files[0].format, settings)
    lists = ((file, group) for file in files for group in file.lists())
    if settings.context == "previous" and (not isinstance(lm, Model) or not lm.saved.model.settings.carry_state):
        anew = "a model that was trained to begin each sentence anew"
        what = anew if isinstance(lm, Model) else "a mixture or an n-gram model"
        remedy = "leave it out, or train a model with --carry-state"
        raise SettingsError(f"--context previous has no effect on {what}; {remedy}")
    if reader and isinstance(lm, Model):
        yield from _adapting(lists, lm, reader, weights)
        return
    if settings.context == "previous" and isinstance(lm, Model):
        yield from _one_after_the_other(lists, lm, weights)
        return
    for some in _gathered(lists):
        scores = iter(_scores(lm, [hypothesis.words for _, group in some for hypothesis in group]).tolist())
        for file, group in some:
            yield _compared(file, group, list(itertools.islice(scores, len(group))), weights)


def _one_after_the_other(lists: Iterator[List], lm: Model, weights: Weights) -> Iterator[Rescored]:
    """Read each list from the state in which the best hypothesis of the one before was left."""
    model = lm.saved.model
    states = model.start(1)
    for file, group in lists:
        keys = _keys(lm, [hypothesis.words for hypothesis in group])
        with working(lm.threads) as work:
            scores = _each_once(keys, partial(_tree, model, states, work))
            rescored = _compared(file, group, scores.tolist(), weights)
            words = np.frombuffer(keys[rescored.best], ID)[:-1].astype(np.int32)
            x = np.concatenate(([SENTENCE_END], words))[:, None]  # (T, 1)
            for part in runs(0, len(x), positions_at_once(model)):
                (_, states), _ = model.read(x[part], states, work)
        yield rescored


def _adapting(lists: Iterator[List], lm: Model, reader: Adapting, weights: Weights) -> Iterator[Rescored]:
    """Learn from the best hypothesis of each list when all of it are scored."""
    for file, group in lists:
        keys = _keys(lm, [hypothesis.words for hypothesis in group])
        with working(lm.threads) as work:

            def score(some: list[bytes], work: Workspace = work) -> NDArray[np.float64]:
                log_p = reader.hypotheses([np.frombuffer(key, ID).astype(np.int32) for key in some], work)
                if reader.learner and not np.isfinite(log_p).all():
                    raise no_numbers(f"give a lower rate than --dynamic {reader.settings.dynamic:g}")
                return log_p

            rescored = _compared(file, group, _each_once(keys, score).tolist(), weights)
            reader.losses(np.frombuffer(keys[rescored.best], ID).astype(np.int32), work)
        yield rescored


def _gathered(lists: Iterator[List]) -> Iterator[list[List]]:
    """Gather lists that have GROUP hypotheses together, or are the last."""
    some: list[List] = []
    hypotheses = words = 0
    for file, group in lists:
        some.append((file, group))
        hypotheses += len(group)
        words += sum(len(hypothesis.words) for hypothesis in group)
        if hypotheses >= GROUP or words >= GROUP_WORDS:
            yield some
            some, hypotheses, words = [], 0, 0
    if some:
        yield some


def _compared(file: NBestFile, group: list[Hypothesis], nats: list[float], weights: Weights) -> Rescored:
    scores = [score / file.format.unit for score in nats]
    totals = [hypothesis.total(score, weights) for hypothesis, score in zip(group, scores, strict=True)]
    return Rescored(file, group, scores, totals.index(max(totals)))


def _scores(lm: AnyModel, hypotheses: list[list[str]]) -> NDArray[np.float64]:
    """Return the natural logarithm of the probability (n,) of hypotheses, the end of each included."""
    if not isinstance(lm, Model):
        different = [tuple(folded(words, lm.lowercase)) for words in hypotheses]
        return _each_once(different, lambda some: np.array([log_p.sum() for log_p in lm.log_probs(some)]))
    model = lm.saved.model
    with working(lm.threads) as work:
        return _each_once(_keys(lm, hypotheses), partial(_tree, model, model.start(1), work))


def _each_once(keys: list[Key], score: Callable[[list[Key]], NDArray[np.float64]]) -> NDArray[np.float64]:
    """Score the different ones, sorted, and return the score of each; raises ModelError where one is no number."""
    different = sorted(set(keys))
    scores = score(different)
    if np.isnan(scores).any():
        raise no_numbers()
    place = {key: number for number, key in enumerate(different)}
    return scores[[place[key] for key in keys]]


def _keys(lm: Model, hypotheses: list[list[str]]) -> list[bytes]:
    """Return the ids of hypotheses and of their ends, each as bytes that are ordered as the ids are."""
    ended = ((*folded(words, lm.lowercase), vocabulary.SENTENCE_END) for words in hypotheses)
    ids = lm.saved.vocabulary.encode(itertools.chain.from_iterable(ended)).astype(ID).tobytes()
    ends = itertools.accumulate((ID.itemsize * (len(words) + 1) for words in hypotheses), initial=0)
    return [ids[start:end] for start, end in itertools.pairwise(ends)]


def _unknown(lm: AnyModel, words: list[str]) -> list[bool]:
    return lm.unknown(folded(words, lm.lowercase))


# ---------------------------------------------------------------------------------------------------------------------
# The tree


def _tree(model: LanguageModel, states: Array, work: Workspace, keys: list[bytes]) -> NDArray[np.float64]:
    """Return log p (n,) of different hypotheses, sorted, each of which is read from the states (L, M, 1, H)."""
    size = max(1, min(GROUP, GROUP_NUMBERS // states.size))
    return np.concatenate([_walk(model, keys[part], states, work) for part in runs(0, len(keys), size)])


def _walk(model: LanguageModel, keys: list[bytes], states: Array, work: Workspace) -> NDArray[np.float64]:
    """Walk down the tree of some hypotheses.

    At depth d those that are longer have read d words, and are asked for the next. Sorted, those with the same
    beginning are neighbors: `alike` says of each whether it begins, so far, as the one before it.
    """
    ids = np.frombuffer(b"".join(keys), ID).astype(np.int32)  # of all, end to end
    lengths = np.array([len(key) // ID.itemsize for key in keys])
    starts, alike = np.cumsum(lengths) - lengths, np.arange(len(keys)) > 0
    totals = np.zeros(len(keys))
    stream = np.zeros(len(keys), int)  # of each hypothesis, among the states
    for depth in range(lengths.max()):
        going = np.flatnonzero(lengths > depth)
        at, begins = starts[going] + depth, ~alike[going]
        x = ids[at[begins] - 1] if depth else np.array([SENTENCE_END], np.int32)
        before = states[:, :, stream[going[begins]]]  # at depth 0 the state of all: the beginning of no words is one
        (s, states), _ = model.read(x[None], before, work)
        stream[going] = np.cumsum(begins) - 1
        following = np.full(len(keys), IGNORED)
        following[going] = ids[at]
        alike[1:] &= following[1:] == following[:-1]
        asked = ~alike[going]  # the first of its beginning and the word that follows
        log_p = _log_p(model, s[0], stream[going[asked]], ids[at[asked]], work)
        totals[going] += log_p[np.cumsum(asked) - 1]
    return totals


def _log_p(model: LanguageModel, s: Array, streams: Array, y: Array, work: Workspace) -> NDArray[np.float64]:
    """Return log p (n,) of words y (n,) after the outputs s (B, H) of some streams (n,)."""
    V, c = model.parameters["V"], model.parameters["c"]
    log_p = np.empty(len(y))
    for some in runs(0, len(y), positions_at_once(model)):
        log_p[some] = -softmax_loss(s[streams[some]], y[some], V, c, model.settings.cutoffs, work, back=False)[0]
    return log_p
