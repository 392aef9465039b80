"""Measure `rnnlm rescore` beside `rnnlm score` of the same hypotheses, on lists that share more or less.

    python benchmarks/nbest.py MODEL TEXT

TEXT has a sentence a line and words between blanks. A list is the 100 best ways through a confusion network, as
decoders make them: the sentence, with some words that have alternatives, drawn from TEXT, each of a random cost; the
places of these are drawn from the whole sentence, or from its second half. Both commands use one thread; what is
compared is CPU time, without that of a list or a line alone. "Allowed" is the ratio if a word cost the same everywhere,
and each pair of a beginning and the word that follows it were computed once: one over the share that is "different".
"""

import itertools
import random
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from machine import print_table

HYPOTHESES, LISTS, ROUNDS = 100, 60, 3
LENGTHS = range(17, 25)  # words of a sentence
NETWORKS = (  # a name, how many words have alternatives, how many each, and from which part of the sentence on
    ("all, one each", 30, 1, 0.0),
    ("10, one each", 10, 1, 0.0),
    ("7, one each", 7, 1, 0.0),
    ("5, two each", 5, 2, 0.0),
    ("3, five each", 3, 5, 0.0),
    ("7 in the second half", 7, 1, 0.5),
    ("3 in the second half, five each", 3, 5, 0.5),
)
HEADER = ("words with alternatives", "different", "score, words/s", "rescore, words/s", "allowed", "ratio")


def best_paths(
    sentence: Sequence[str], words: Sequence[str], places: int, others: int, start: float, draw: random.Random
) -> list[list[str]]:
    """Return the hypotheses of a sentence, the best first: `others` beside the right word in each of some places."""
    free = range(int(start * len(sentence)), len(sentence))
    chosen = set(draw.sample(free, min(places, len(free))))
    paths: list[tuple[float, list[str]]] = [(0.0, [])]
    for place, word in enumerate(sentence):
        ways = [(0.0, word)]
        if place in chosen:
            ways += [(draw.expovariate(1), draw.choice(words)) for _ in range(others)]
        longer = ((cost + more, [*path, way]) for cost, path in paths for more, way in ways)
        paths = sorted(longer)[:HYPOTHESES]  # what is not among the best so far cannot come back
    return [path for _, path in paths]


def seconds(*arguments: str) -> float:
    """Return the CPU time of a command of rnnlm, the median of some calls."""
    taken = []
    for _ in range(ROUNDS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "rnnlm", *arguments], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(taken)


def measured(model: str, lists: list[list[list[str]]], folder: Path) -> tuple[int, float, float]:
    """Return the number of words, and the CPU time of `score` and of `rescore`, without what a line or a list takes."""
    taken = []
    common = ("--model", model, "--threads", "1")
    for name, lead, command in (("text", "", ("score", "--pretokenized")), ("nbest", "{} ", ("rescore", "--format"))):
        path, short = folder / name, folder / f"{name}.short"
        rows = [lead.format(number) + " ".join(path) + "\n" for number, one in enumerate(lists) for path in one]
        path.write_text("".join(rows), "utf-8")
        short.write_text(rows[0], "utf-8")
        command = (*command, *["mikolov"] * (name == "nbest"), *common)
        taken.append(seconds(*command, str(path)) - seconds(*command, str(short)))
    return sum(len(path) + 1 for one in lists for path in one), taken[0], taken[1]


def sharing(lists: list[list[list[str]]]) -> float:
    """Return which share of all predictions, `</s>` included, differs in the beginning or in the word that follows."""
    every = different = 0
    for one in lists:
        ended = [(*path, "</s>") for path in one]
        every += sum(map(len, ended))
        different += len({path[:end] for path in ended for end in range(1, len(path) + 1)})
    return different / every


def main() -> None:
    """Make the lists, measure, and print the table."""
    model, text = sys.argv[1:]
    sentences = [line.split() for line in Path(text).read_text("utf-8").splitlines()]
    words = list(itertools.chain.from_iterable(sentences))
    draw = random.Random(1)
    some = draw.sample([sentence for sentence in sentences if len(sentence) in LENGTHS], LISTS)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, places, others, start in NETWORKS:
            lists = [best_paths(sentence, words, places, others, start, draw) for sentence in some]
            count, score, rescore = measured(model, lists, Path(folder))
            share = sharing(lists)
            ratios = (f"{1 / share:.2f}", f"{score / rescore:.2f}")
            rows.append((name, f"{share:.2f}", f"{count / score:,.0f}", f"{count / rescore:,.0f}", *ratios))
    print_table(HEADER, rows)


if __name__ == "__main__":
    main()
