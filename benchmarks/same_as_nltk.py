"""Compare words and sentences with those that NLTK cuts by itself, without the shortcuts of shortcuts.py.

    python benchmarks/same_as_nltk.py shakespeare.txt ptb.train.txt --mutated 20000

Tokenized texts are joined to raw ones first. Of all texts, so many lines are changed at random: punctuation, quotes,
digits, abbreviations and letters of other scripts are put into them. Prints a Markdown table of how many differ.
"""

import argparse
import random
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from machine import print_table

from rnnlm import text
from rnnlm.sources import Source
from rnnlm.text import TextSettings, Tokenizer

MARKS = [
    *"«“‘„`\"'([{<»”’.])}>:,;@#$%&‒—–?!*-_/\\|~^+=‹›…€£°·¿¡éßΣ中文，。\u00ad\u200b\u0301ﬁ٣½²",
    *(
        "--",
        "..",
        "...",
        "''",
        "``",
        "'s",
        "’s",
        "n't",
        "N'T",
        "3,000",
        "10:30",
        "1.5",
        "$5.00",
        "Dr.",
        "Mr.",
        "U.S.",
        "e.g.",
    ),
    *(
        "St.",
        "No.",
        "Inc.",
        "cannot",
        "gonna",
        "d'ye",
        "'tis",
        "<unk>",
        "http://x.y/z?a=b",
        "a@b.c",
        "C++",
        "O'Neil",
        "x" * 80,
    ),
]
LONGEST = 400  # characters of a line that is changed


def main() -> None:
    """Compare each text, and then their changed lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--mutated", type=int, default=20_000, help="lines that are changed")
    options = parser.parse_args()
    lines = {path.name: joined(path.read_text("utf-8")) for path in options.texts}
    every, choice = [line for own in lines.values() for line in own], random.Random(1)
    lines["changed"] = [changed(choice.choice(every)[:LONGEST], choice) for _ in range(options.mutated)]
    header = ("text", "lines", "lines whose words differ", "sentences", "sentences that differ")
    print_table(header, ((name, *compare(own)) for name, own in lines.items()))


def joined(raw: str) -> list[str]:
    """Return the lines of a text, whose split words are joined again and whose lines begin and end as sentences do."""
    raw = re.sub(r" (n't|'s|'re|'ve|'ll|'d|'m)\b", r"\1", raw).replace("<unk>", "Acme")
    lines = [" ".join(line.split()) for line in raw.splitlines()]
    return [line[0].upper() + line[1:] + ("" if line[-1] in ".?!:;," else ".") for line in lines if line]


def changed(line: str, choice: random.Random) -> str:
    """Put marks into a line, in the place of characters or beside them."""
    for _ in range(choice.choice((1, 2, 4, 8))):
        place, mark = choice.randrange(len(line) + 1), choice.choice(MARKS)
        line = line[:place] + choice.choice((mark, mark, f" {mark} ", f"{mark} ")) + line[place + choice.randrange(2) :]
    return " ".join(re.sub("</?s>", "", line).split()) or "."


def compare(lines: Sequence[str]) -> tuple[str, ...]:
    """Return the cells of a row: lines and sentences, and how many are other ones by NLTK alone."""
    quick, whole = (split(TextSettings(lines=True)) for split in (text._word_splitter, text._whole_splitter))
    words = sum(quick(line) != whole(line) for line in lines)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "text")
        path.write_text("\n".join(lines), "utf-8")
        tokenizer = Tokenizer.learn([Source.of(path)], TextSettings())
        short = list(tokenizer.sentences([Source.of(path)]))
        text.surely_ends, before = (lambda *_: False), text.surely_ends
        text._word_splitter, splitter = text._whole_splitter, text._word_splitter
        long = list(tokenizer.sentences([Source.of(path)]))
        text.surely_ends, text._word_splitter = before, splitter
    differing = sum(first != second for first, second in zip(short, long, strict=False)) + abs(len(short) - len(long))
    return f"{len(lines):,}", f"{words}", f"{len(short):,}", f"{differing}"


if __name__ == "__main__":
    main()
