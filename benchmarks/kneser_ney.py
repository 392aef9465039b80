"""Write an n-gram model of a text in ARPA format: interpolated modified Kneser-Ney, nothing pruned.

    python benchmarks/kneser_ney.py TEXT ARPA [ORDER]

The text has a sentence a line and words between blanks; `<unk>` is a word like the others, and nothing more. A
sentence is read as `<s> w1 ... wn </s>`. The equations are those of Chen and Goodman (1998), with a discount for each
of the counts 1, 2 and 3 or more: with a(g) the count of an n-gram g of the highest order, or of one that begins with
`<s>`, and else the number of different words that are seen before g,

    p(w | h) = (a(hw) - D(a(hw))) / sum_x a(hx) + gamma(h) p(w | h without its first word),

where gamma(h) is what the discounts have taken; single words are interpolated with a uniform distribution. 2.6 million
n-grams of the Penn Treebank take about 10 seconds. It is what `rnnlm mix` is measured with, not a tool for large texts.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Numbers = NDArray[np.float64]


@dataclass
class Grams:
    """All n-grams of one order, G of them."""

    place: Ids  # (G,) where in the text each ends for the first time
    count: Ids  # (G,)
    at: Ids  # (N,) the n-gram that ends at each place of the text; -1: it would begin before its sentence
    prefix: Ids  # (G,) number of the n-gram of the order below without its last word
    suffix: Ids  # (G,) the same without its first


def tokens(path: Path) -> tuple[list[str], Ids, Ids]:
    """Read a text: the words by id, 0 for `<s>` and 1 for `</s>`; ids (N,); each one's place in its sentence (N,)."""
    ids, places, found = {"<s>": 0, "</s>": 1}, [], []
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            words = ["<s>", *line.split(), "</s>"]
            found += [ids.setdefault(word, len(ids)) for word in words]
            places += range(len(words))
    return list(ids), np.array(found), np.array(places)


def grams(text: Ids, places: Ids, order: int, vocabulary: int) -> list[Grams]:
    """Count the n-grams of each order from 1 up."""
    every = np.arange(vocabulary)
    first = np.unique(text, return_index=True)[1]
    found = [Grams(first, np.bincount(text), text, np.zeros_like(every), np.zeros_like(every))]
    for n in range(2, order + 1):
        below = found[-1].at
        ends = np.flatnonzero(places >= n - 1)
        pairs = below[ends - 1] * vocabulary + text[ends]
        _, where, numbers, count = np.unique(pairs, return_index=True, return_inverse=True, return_counts=True)
        at = np.full(len(text), -1)
        at[ends] = numbers
        place = ends[where]
        found.append(Grams(place, count, at, below[place - 1], below[place]))
    return found


def adjusted(all_grams: list[Grams], text: Ids) -> list[Ids]:
    """Return a(g) of each order (G,): of `<s>` alone, which is never predicted, it is 0."""
    counts = []
    for n, (one, above) in enumerate(zip(all_grams, [*all_grams[1:], None], strict=True), 1):
        count = one.count
        if above is not None:
            count = np.bincount(above.suffix, minlength=len(one.count))
            count = np.where(text[one.place - n + 1] == 0, one.count, count)
        counts.append(count)
    counts[0][0] = 0
    return counts


def discounts(count: Ids) -> Numbers:
    """Return D(0), D(1), D(2) and D(3), the last for all counts from 3 up."""
    seen = [np.count_nonzero(count == k) for k in range(5)]
    if not all(seen[1:4]):
        sys.exit("of some order no n-gram occurs once, twice or three times, which discounts need: take a longer text")
    share = seen[1] / (seen[1] + 2 * seen[2])
    return np.array([0, *(k - (k + 1) * share * seen[k + 1] / seen[k] for k in (1, 2, 3))])


def estimate(all_grams: list[Grams], counts: list[Ids], vocabulary: int) -> tuple[list[Numbers], list[Numbers]]:
    """Return p (G,) of each order, and gamma (G,) of each n-gram as a history."""
    p, gammas, below = [], [], np.full(1, 1 / (vocabulary - 1))  # `<s>` is never predicted
    for one, count in zip(all_grams, counts, strict=True):
        taken = discounts(count)[np.minimum(count, 3)]
        histories = len(p[-1]) if p else 1
        total = np.maximum(np.bincount(one.prefix, count, histories), 1)
        gamma = np.bincount(one.prefix, taken, histories) / total
        gammas.append(np.where(gamma > 0, gamma, 1))  # a history of nothing
        below = (count - taken) / total[one.prefix] + gammas[-1][one.prefix] * below[one.suffix]
        p.append(below)
    p[0][0] = 1  # log10 p of <s> is written as 0
    return p, [*gammas[1:], np.ones(len(p[-1]))]


def write(
    path: Path, words: list[str], text: Ids, all_grams: list[Grams], p: list[Numbers], bow: list[Numbers]
) -> None:
    """Write the model in ARPA format."""
    strings = np.array(words, object)[text]
    with path.open("w", encoding="utf-8") as file:
        file.write("\\data\\\n")
        file.writelines(f"ngram {n}={len(one.place)}\n" for n, one in enumerate(all_grams, 1))
        for n, one in enumerate(all_grams, 1):
            file.write(f"\n\\{n}-grams:\n")
            for end, log_p, log_bow in zip(one.place, np.log10(p[n - 1]), np.log10(bow[n - 1]), strict=True):
                history = "" if n == len(all_grams) else f"\t{log_bow:.7g}"
                file.write(f"{log_p:.7g}\t{' '.join(strings[end - n + 1 : end + 1])}{history}\n")
        file.write("\n\\end\\\n")


def main(source: str, target: str, order: str = "5") -> None:
    """Estimate and write."""
    words, text, places = tokens(Path(source))
    found = grams(text, places, int(order), len(words))
    p, bow = estimate(found, adjusted(found, text), len(words))
    write(Path(target), words, text, found, p, bow)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(*sys.argv[1:])
