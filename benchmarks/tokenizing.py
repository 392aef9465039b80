"""Measure tokenizing and encoding of raw text: words a second, and how much memory it takes whatever the size.

    python benchmarks/tokenizing.py TEXT --words 1 20 --processes 1 2

repeats TEXT until there are so many million words, one word in a hundred made new so that types keep coming, and
prints a Markdown table. Memory is the peak resident set as Linux reports it; the large text is deleted afterwards.
"""

import argparse
import contextlib
import itertools
import json
import multiprocessing
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from machine import peak_megabytes, print_table

HEADER = ("words", "processes", "seconds", "words/s", "peak MB, parent", "peak MB, largest child")


def main() -> None:
    """Write the texts, measure each in a fresh process, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="raw text to repeat")
    parser.add_argument("--words", type=float, nargs="+", default=[1.0, 20.0], help="sizes, in millions of words")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)  # this very process is the one measured
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.text, options.measure)))
        return
    measured = (rows(options.text, int(millions * 1e6), options.processes) for millions in options.words)
    print_table(HEADER, itertools.chain.from_iterable(measured))


def rows(text: Path, words: int, processes: Sequence[int]) -> Iterator[tuple[str, ...]]:
    """Yield a row of the table for each number of processes, measured on a text repeated to so many words."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "text")
        write_text(text.read_text("utf-8"), words, path)
        for number in processes:
            command = [sys.executable, __file__, str(path), "--measure", str(number)]
            found = json.loads(subprocess.check_output(command))
            yield (
                f"{found['words']:,}",
                f"{number}",
                f"{found['seconds']:.1f}",
                f"{found['words'] / found['seconds']:,.0f}",
                f"{found['parent']:.0f}",
                f"{found['child']:.0f}",
            )


def write_text(text: str, words: int, path: Path) -> None:
    """Write a text again and again until it has so many words, every hundredth one changed in each repetition."""
    pieces = text.split(" ")
    tokens_per_piece = 1.5  # punctuation is split off, and line ends join two words in a piece
    with path.open("w", encoding="utf-8") as file:
        for repetition in range(max(round(words / (len(pieces) * tokens_per_piece)), 1)):
            start = repetition % 100
            changed = list(pieces)
            changed[start::100] = [f"{piece}x{repetition}" for piece in pieces[start::100]]
            file.write(" ".join(changed) + "\n\n")


def measure(path: Path, processes: int) -> dict[str, float]:
    """Encode a text and return the words, the seconds, and the peak memory of this process and of its children."""
    from rnnlm.corpus import prepare
    from rnnlm.sources import Source
    from rnnlm.text import TextSettings
    from rnnlm.vocabulary import VocabularySettings

    peaks = {"child": 0.0}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            for child in multiprocessing.active_children():
                with contextlib.suppress(OSError):
                    peaks["child"] = max(peaks["child"], peak_megabytes(child.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        train = prepare(
            [Source.of(path)], Path(folder), TextSettings(), VocabularySettings(), processes=processes
        ).train
        seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    return {"words": train.words, "seconds": seconds, "parent": peak_megabytes(), **peaks}


if __name__ == "__main__":
    main()
