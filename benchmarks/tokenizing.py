"""Measure the reading of text: words a second, and how much memory it takes whatever the size.

    python benchmarks/tokenizing.py TEXT --words 1 20 --processes 1 2
    python benchmarks/tokenizing.py --types 800000 --words 100 --processes 1 2 --train 60

repeats TEXT, which is raw, until there are so many million words, one word in a hundred made new so that types keep
coming; without TEXT, draws a pretokenized text of so many types by Zipf's law. Encodes it, and prints a Markdown table.
With --train, `rnnlm train` then trains on it for so many seconds, with 100 units and all words, and is interrupted:
its memory is that of encoding, training and saving. Memory is the peak resident set as Linux reports it; anonymous is
what of it is no part of a file. Large texts are deleted afterwards.
"""

import argparse
import contextlib
import json
import multiprocessing
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from machine import peak_megabytes, print_table, rnnlm

HEADER = ("words", "processes", "seconds", "words/s", "peak MB, parent", "peak MB, largest child")
TRAINING = ("peak MB, training", "anonymous MB, training")
TYPES = 800_000
SYLLABLES = [consonant + vowel for consonant in "bcdfghjklmnprstvwxyz" for vowel in "aeiou"]
SENTENCE = 20  # words, on average
BLOCK = 2**20  # words drawn at once


def main() -> None:
    """Write the texts, measure each in a fresh process, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, nargs="?", help="raw text to repeat; else a pretokenized one is drawn")
    parser.add_argument("--words", type=float, nargs="+", default=[1.0, 20.0], help="sizes, in millions of words")
    parser.add_argument("--types", type=int, default=TYPES, help="different words of the text that is drawn")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--train", type=float, default=0, help="seconds of training on the text that is drawn")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)  # this very process is the one measured
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.text, options.measure, options.types)))
        return
    train = 0 if options.text else options.train
    found = (
        row
        for millions in options.words
        for row in rows(options.text, int(millions * 1e6), options.processes, options.types, train)
    )
    print_table((*HEADER, *(TRAINING if train else ())), found)


def rows(
    text: Path | None, words: int, processes: Sequence[int], types: int = TYPES, train: float = 0
) -> Iterator[tuple[str, ...]]:
    """Yield a row of the table for each number of processes, measured on a text of so many words."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "text")
        if text:
            write_text(text.read_text("utf-8"), words, path)
        else:
            draw_text(words, types, path)
        for number in processes:
            command = [
                sys.executable,
                __file__,
                str(path),
                "--measure",
                str(number),
                "--types",
                f"{0 if text else types}",
            ]
            found = json.loads(subprocess.check_output(command))
            yield (
                f"{found['words']:,}",
                f"{number}",
                f"{found['seconds']:.1f}",
                f"{found['words'] / found['seconds']:,.0f}",
                f"{found['parent']:.0f}",
                f"{found['child']:.0f}",
                *(f"{megabytes:,.0f}" for megabytes in (training(path, types, number, train) if train else ())),
            )


def draw_text(words: int, types: int, path: Path) -> None:
    """Write a pretokenized text whose words, numbered by frequency, have Zipf's law: log(number) is uniform."""
    rng = np.random.default_rng(1)
    spelled = np.array([spelling(number) for number in range(1, types + 1)], "S8").view(np.uint8).reshape(types, 8)
    spelled = np.append(spelled, np.full((types, 1), ord(" "), np.uint8), axis=1)  # bytes of 0 are left out
    with path.open("wb") as file:
        for place in range(0, words, BLOCK):
            size = min(BLOCK, words - place)
            drawn = spelled[np.exp(rng.random(size) * np.log(types + 1)).astype(int).clip(1, types) - 1]
            drawn[rng.random(size) * SENTENCE < 1, 8] = ord("\n")
            file.write(drawn[drawn != 0].tobytes())


def spelling(number: int) -> str:
    """Spell a number from 1 on in syllables, short ones first."""
    word = ""
    while number:
        number, last = divmod(number - 1, len(SYLLABLES))
        word = SYLLABLES[last] + word
    return word


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


def measure(path: Path, processes: int, types: int) -> dict[str, float]:
    """Encode a text and return the words, the seconds, and the peak memory of this process and of its children.

    The text is raw, or pretokenized, with so many types.
    """
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
    text, words = TextSettings(pretokenized=types > 0), VocabularySettings(vocab_size=types or None)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        train = prepare([Source.of(path)], Path(folder), text, words, processes=processes).train
        seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    return {"words": train.words, "seconds": seconds, "parent": peak_megabytes(), **peaks}


def training(path: Path, types: int, threads: int, seconds: float) -> tuple[float, float]:
    """Train on a text for some seconds after it has been encoded; returns the peak memory, all and anonymous."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--pretokenized", "--hidden", "100", "--vocab-size", str(types), "--threads", str(threads)]
        command = [*rnnlm(), "train", str(path), *options, "--quiet", "--model", f"{folder}/model"]
        process = subprocess.Popen(command)
        encoded = Path(folder, "model", "encoded-train", "facts.json")
        peak = anonymous = 0.0
        end = float("inf")
        while process.poll() is None:
            if end == float("inf") and encoded.exists():
                end = time.perf_counter() + seconds
            if time.perf_counter() > end:
                process.send_signal(signal.SIGINT)
                end = float("nan")  # never again
            with contextlib.suppress(OSError, IndexError):  # it may have ended just now
                peak = max(peak, peak_megabytes(process.pid))
                rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text("utf-8")
                anonymous = max(anonymous, int(rollup.partition("Anonymous:")[2].split()[0]) / 1024)
            time.sleep(0.2)
    return peak, anonymous


if __name__ == "__main__":
    main()
