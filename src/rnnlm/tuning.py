"""The weights with which a model chooses best among the hypotheses of n-best lists: those with the fewest word errors.

A word error is a word that is wrong, missing or too much, by the Levenshtein distance from the reference.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rnnlm.errors import SettingsError, TextError
from rnnlm.nbest import LEAST, Format, NBestFile, Weights, ids_and_words, lines_of_words
from rnnlm.rescoring import AnyModel, rescore
from rnnlm.searching import search
from rnnlm.settings import RescoringSettings
from rnnlm.sources import Source

FACTORS = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)  # the grid, of weights
PENALTIES = (0.0, -5.0, -2.0, -1.0, -0.5, 0.5, 1.0, 2.0, 5.0)  # and of the word penalty
LEAST_STEP = 0.01  # share of a weight below which it is changed no more


@dataclass(frozen=True)
class Tuned:
    """The weights found, and the word errors with and without them."""

    weights: Weights
    words: int  # of the references
    first: int  # word errors of the first hypothesis of each list
    tuned: int  # of the one that the weights choose
    fewest: int  # of the one in each list that has the fewest

    def rate(self, errors: int) -> float:
        """Return word errors as a share of the references' words."""
        return errors / self.words


@dataclass(frozen=True)
class _Lists:
    """All hypotheses (n,) of all lists, one after the other."""

    starts: NDArray[np.int64]  # (lists,): where each list begins
    owner: NDArray[np.int64]  # the list of each hypothesis
    fixed: NDArray[np.float64]
    old: NDArray[np.float64]
    score: NDArray[np.float64]
    count: NDArray[np.float64]
    errors: NDArray[np.int64]

    @classmethod
    def of(cls, columns: list[NDArray[np.float64]]) -> _Lists:
        """Lay lists end to end, whose columns (5, n) are fixed, old, score, count and errors."""
        sizes = [one.shape[1] for one in columns]
        fixed, old, score, count, errors = np.concatenate(columns, axis=1)
        score = np.maximum(score, LEAST)
        owner = np.repeat(np.arange(len(sizes)), sizes)
        return cls(np.cumsum(sizes) - sizes, owner, fixed, old, score, count, errors.astype(np.int64))

    def chosen(self, weights: Weights) -> int:
        """Count the word errors of the hypotheses that the weights choose: the first greatest total of each list."""
        totals = self.fixed + weights.old * self.old + weights.model * self.score + weights.penalty * self.count
        greatest = np.maximum.reduceat(totals, self.starts)
        places = np.flatnonzero(totals == greatest[self.owner])
        owners = self.owner[places]
        return int(self.errors[places[np.diff(owners, prepend=-1) > 0]].sum())


def word_errors() -> Callable[[Sequence[str], Sequence[str]], int]:
    """Return the function that counts word errors; raises SettingsError where the package for it is missing."""
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError:
        message = "--tune needs the package rapidfuzz; install it with pip install 'rnnlm-numpy[rescore]'"
        raise SettingsError(message) from None
    distance: Callable[[Sequence[str], Sequence[str]], int] = Levenshtein.distance
    return distance


def references(source: Source, files: Sequence[NBestFile]) -> dict[str, list[str]]:
    """Read the right words of lists of one format: lines of `ID words`, or for Moses a line for each ID, from 0.

    Moses' lines may begin with IDs too: they do where all IDs of the lists begin one. Raises TextError where the file
    is no such thing.
    """
    if files[0].format.name == "moses":
        lines = list(lines_of_words(source))
        begins = {words[0] for words in lines if words}
        if not all(group[0].key in begins for file in files for group in file.lists()):
            return {str(number): words for number, words in enumerate(lines)}
    found: dict[str, list[str]] = {}
    for number, key, words in ids_and_words(source):
        if key in found:
            raise TextError(f"{source.name}, line {number}: the ID {key[:40]!r} is there twice; remove one")
        found[key] = words
    return found


def tune(
    files: Sequence[NBestFile],
    lm: AnyModel,
    source: Source,
    progress: Callable[[int], object] | None = None,
) -> Tuned:
    """Find weights for lists of one format whose right words are in a file of references.

    First all weights of a grid are tried, then each by itself is moved up and down from the best, by smaller and
    smaller steps. Of two that are equally good the first is kept. `progress` is told of the hypotheses scored.

    Raises SettingsError where the package for word errors is missing, TextError where a list has no reference.
    """
    count_errors = word_errors()
    right = references(source, files)
    keys: list[str] = []
    columns: list[NDArray[np.float64]] = []
    for one in rescore(files, lm, RescoringSettings()):
        key = one.hypotheses[0].key
        if key not in right:
            in_order = one.file.format.name == "moses" and key.isdigit()
            what = f"line {int(key) + 1}" if in_order else f"a line `{key[:40]} WORDS` for that list"
            raise TextError(f"{source.name}: the references lack {what}; add it, or name another file with --tune")
        keys.append(key)
        rows = [
            (hypothesis.fixed, hypothesis.old, score, hypothesis.size, count_errors(right[key], hypothesis.words))
            for hypothesis, score in zip(one.hypotheses, one.scores, strict=True)
        ]
        columns.append(np.array(rows, np.float64).T)
        if progress:
            progress(len(rows))
    words = sum(len(right[key]) for key in keys)
    if not words:
        raise TextError(f"{source.name}: the references have no words; name another file with --tune")
    return _found(_Lists.of(columns), words, files[0].format)


def _found(lists: _Lists, words: int, format: Format) -> Tuned:
    """Search the weights that matter; totals that are twice as large choose the same, so one of them stands still."""
    olds = FACTORS if format.name == "srilm" else (format.old_weight or 0.0,)
    models = FACTORS if format.old_weight is not None else (1.0,)
    free = [len(values) > 1 for values in (models, olds, PENALTIES)]

    def errors(*weights: float) -> int:
        return lists.chosen(Weights(*weights))

    def moved(which: int, value: float, change: float) -> float:
        return float(f"{value + change * max(abs(value), 0.1):.4g}") if free[which] else value  # told as it is used

    fewest, weights = search(errors, itertools.product(models, olds, PENALTIES), moved, LEAST_STEP)
    least = int(np.minimum.reduceat(lists.errors, lists.starts).sum())
    return Tuned(Weights(*weights), words, int(lists.errors[lists.starts].sum()), int(fewest), least)
