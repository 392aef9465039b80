"""Entries of the cache: folders of arrays, with facts that are written last and have a checksum of everything.

Whatever stands in an entry may be damaged, or another program's. So it is read with bounds and in one pass, in which
all that can be wrong with it is looked for; and what rnnlm has not written is neither removed nor followed.
"""

import contextlib
import json
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnnlm.errors import SettingsError, VocabularyError
from rnnlm.files import open_plain, reason
from rnnlm.vocabulary import Vocabulary

BLOCK = 2**20  # ids or bytes handled at once
NAMES = ("encoded-train", "encoded-valid")  # of entries

_FACTS = "facts.json"
_ARRAYS = ("ids", "offsets", "words", "counts")
_FACTS_LIMIT = 2**25  # bytes; Punkt's parameters take less, even where the text it learns from repeats no word
_VOCABULARY_LIMIT = 2**30  # bytes
_WORD_LIMIT = 2**22  # characters; no text has a word of so many


class Part(NamedTuple):
    """What the ids do not tell of a part of a text.

    Arguments:
        unknown: how many of its words are `<unk>`.
        types: how many different words it has.
        characters: how many characters its words have.
    """

    unknown: int
    types: int
    characters: int


class Entry(NamedTuple):
    """An entry, its arrays mapped into memory.

    Arguments:
        ids: int32, `words + sentences` of them: w1 w2 ... 0 w1 ... 0.
        offsets: int64, where each sentence begins in `ids`, and the end.
        cut: how many sentences belong to the first part; the others to the second.
        parts: one or two.
        vocabulary: the one that the text is encoded with.
        tokenizer: the one that cut the text, as JSON, where the entry holds that.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    cut: int
    parts: list[Part]
    vocabulary: Vocabulary
    tokenizer: Any = None


# Writing


def check_places(folder: Path) -> None:
    """Remove what a kill has left of entries.

    Raises SettingsError where something that rnnlm has not written stands in the place of one; then nothing is removed.
    """
    places = [folder / name for name in NAMES]
    partial = [_partial(place) for place in places]
    with writing(folder):
        for place in (*places, *partial):
            _check_place(place)
        for place in partial:
            _remove(place)


@contextlib.contextmanager
def writing(folder: "Path | str", remedy: str = "make room, or name another folder with --model") -> Iterator[None]:
    """Turn what the system says of a folder into a sentence that names it."""
    try:
        yield
    except OSError as error:
        raise SettingsError(f"{folder}: cannot be written ({reason(error)}); {remedy}") from None


@contextlib.contextmanager
def rebuilding(place: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the entry's place if all goes well, and goes if it does not."""
    partial = _partial(place)
    with writing(place.parent):
        partial.mkdir(parents=True)
        try:
            yield partial
            _remove(place)
            partial.rename(place)
        except BaseException:
            with contextlib.suppress(OSError, SettingsError):  # what failed first is what the user is told
                _remove(partial)
            raise


def write(file: BinaryIO, array: NDArray[Any]) -> None:
    """Write an array's bytes; unlike NumPy's `tofile`, it gives the system's own reason where that fails."""
    file.write(np.ascontiguousarray(array).data)


def write_vocabulary(partial: Path, vocabulary: Vocabulary) -> None:
    """Write the words and counts that go with ids which were made together with them."""
    for name, array in vocabulary.to_arrays().items():
        with (partial / name).open("wb") as file:
            write(file, array)


def finish(partial: Path, key: str, cut: int, parts: list[Part], tokenizer: Any = None) -> None:
    """Write the facts, with checksums of the files that are there."""
    facts = {
        "key": key,
        "cut": cut,
        "parts": [part._asdict() for part in parts],
        "tokenizer": tokenizer,
        "checksums": {path.name: _checksum(path) for path in sorted(partial.iterdir())},
    }
    stored = {"facts": facts, "checksum": _checksum_of_facts(facts)}
    (partial / _FACTS).write_text(json.dumps(stored, ensure_ascii=False), "utf-8")


def _partial(place: Path) -> Path:
    return place.with_name(f".{place.name}.partial")


def _check_place(place: Path) -> None:
    """Raise SettingsError unless a place is free, or has what rnnlm has written and nothing else."""
    try:
        mode = place.lstat().st_mode
        found = [] if not stat.S_ISDIR(mode) else sorted(os.scandir(place), key=lambda item: item.name)
    except FileNotFoundError:
        return
    except ValueError:  # a NUL
        raise SettingsError(f"{str(place)!r}: no folder has such a name; name another with --model") from None
    names = [item.name for item in found]
    strange = [item.name for item in found if item.name not in (*_ARRAYS, _FACTS) or item.is_dir(follow_symlinks=False)]
    if not stat.S_ISDIR(mode):
        what = "a symbolic link" if stat.S_ISLNK(mode) else "no folder"
        message = f"this is {what}, and rnnlm keeps a folder of that name"
    elif strange:
        message = f"rnnlm keeps a folder of that name, and has not written {strange[0]!r} in this one"
    elif names and _FACTS not in names and not place.name.startswith("."):
        message = f"rnnlm keeps a folder of that name, and has not written this one, which has no {_FACTS}"
    else:
        return
    raise SettingsError(f"{place}: {message}; move it away, or name another folder with --model")


def _remove(place: Path) -> None:
    """Remove what rnnlm has written: the facts last, so that what a kill leaves of it is known for that."""
    _check_place(place)
    for name in (*_ARRAYS, _FACTS):
        (place / name).unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        place.rmdir()


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            value = zlib.crc32(block, value)
    return value


def _checksum_of_facts(facts: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(facts, sort_keys=True).encode())


# Reading


def find(place: Path, key: str, vocabulary: Vocabulary | None = None) -> Entry | None:
    """Return an entry, or None where there is none of this key, or what is there is not what rnnlm has written.

    `vocabulary` is the one that the ids must belong to; None: the one that the entry holds.
    """
    try:
        _must(not place.is_symlink())
        facts = _read_facts(place, key)
        own = _read_vocabulary(place, facts["checksums"]) if "words" in facts["checksums"] else None
        words = vocabulary or own
        if words is None or own not in (None, words):
            return None
        parts = [Part(**part) for part in facts["parts"]]
        with open_plain(place / "ids", follow=False) as ids, open_plain(place / "offsets", follow=False) as offsets:
            counts = _read_sentences(ids, offsets, facts, len(words))
            for part, count in zip(parts, counts, strict=True):
                _check_part(part, count, words)
            _must(own is None or np.array_equal(counts[0], own.counts))
            return _mapped(ids, offsets, facts["cut"], parts, words, facts["tokenizer"])
    except (OSError, ValueError, RecursionError, VocabularyError):
        return None


def opened(place: Path, cut: int, parts: list[Part], vocabulary: Vocabulary, tokenizer: Any = None) -> Entry:
    """Return an entry that has just been written."""
    with open_plain(place / "ids", follow=False) as ids, open_plain(place / "offsets", follow=False) as offsets:
        return _mapped(ids, offsets, cut, parts, vocabulary, tokenizer)


def _mapped(ids: BinaryIO, offsets: BinaryIO, *rest: Any) -> Entry:
    return Entry(np.memmap(ids, "<i4", mode="r"), np.memmap(offsets, "<i8", mode="r"), *rest)  # outlive the files


def _must(condition: bool) -> None:
    if not condition:
        raise ValueError("the entry is damaged")


def _read_facts(place: Path, key: str) -> dict[str, Any]:
    """Return the facts of an entry of this key, everything in them of its type but the tokenizer."""
    with open_plain(place / _FACTS, follow=False) as file:
        content = file.read(_FACTS_LIMIT + 1)
    _must(len(content) <= _FACTS_LIMIT)
    stored = json.loads(content)
    _must(isinstance(stored, dict) and stored.keys() == {"facts", "checksum"})
    facts: dict[str, Any] = stored["facts"]
    _must(isinstance(facts, dict) and stored["checksum"] == _checksum_of_facts(facts) and facts.get("key") == key)
    _must(facts.keys() == {"key", "cut", "parts", "tokenizer", "checksums"})
    checksums, parts = facts["checksums"], facts["parts"]
    _must(isinstance(checksums, dict) and checksums.keys() in ({*_ARRAYS[:2]}, {*_ARRAYS}))
    _must(isinstance(parts, list) and len(parts) in (1, 2))
    _must(all(isinstance(part, dict) and part.keys() == {*Part._fields} for part in parts))
    numbers = [facts["cut"], *(number for part in parts for number in part.values())]
    _must(all(type(number) is int and 0 <= number < 2**63 for number in numbers))
    return facts


def _read_vocabulary(place: Path, checksums: dict[str, Any]) -> Vocabulary:
    arrays = {}
    for name, dtype in (("words", "u1"), ("counts", "<i8")):
        with open_plain(place / name, follow=False) as file:
            content = file.read(_VOCABULARY_LIMIT)
        _must(zlib.crc32(content) == checksums[name])
        arrays[name] = np.frombuffer(content, dtype)
    return Vocabulary.from_arrays(arrays)


def _read_sentences(
    ids_file: BinaryIO, offsets_file: BinaryIO, facts: dict[str, Any], words: int
) -> list[NDArray[np.int64]]:
    """Read ids and offsets once, each offset beside the id that it follows from; return each part's counts by id.

    Raises ValueError where the ids are not sentences of a vocabulary of `words`, or the facts not theirs.
    """
    cut, parts = facts["cut"], len(facts["parts"])
    offsets_file.seek(8 * min(cut, 2**40))
    (border,) = np.frombuffer(offsets_file.read(8), "<i8").tolist()  # of the parts; found to be one in what follows
    offsets_file.seek(0)
    start = offsets_file.read(8)
    _must(start == bytes(8))
    checksums = {"ids": 0, "offsets": zlib.crc32(start)}
    counts = [np.zeros(words, np.int64) for _ in range(2)]
    place, last = 0, -1
    while block := ids_file.read(4 * BLOCK):
        ids = np.frombuffer(block, "<i4")
        _must(ids.min() >= 0 and ids.max() < words)
        ends = (np.flatnonzero(ids == 0) + (place + 1)).astype("<i8").tobytes()
        _must(offsets_file.read(len(ends)) == ends)
        split = min(max(border - place, 0), len(ids))
        for count, own in zip(counts, (ids[:split], ids[split:]), strict=True):
            count += np.bincount(own, minlength=words)
        checksums = {"ids": zlib.crc32(block, checksums["ids"]), "offsets": zlib.crc32(ends, checksums["offsets"])}
        place, last = place + len(ids), ids[-1]
    _must(last == 0 and not offsets_file.read(1))
    _must(all(facts["checksums"][name] == value for name, value in checksums.items()))
    _must(cut == counts[0][0] > 0 and np.count_nonzero([count[0] for count in counts]) == parts)
    return counts[:parts]


def _check_part(part: Part, counts: NDArray[np.int64], vocabulary: Vocabulary) -> None:
    """Raise ValueError where what is told of a part is not what its words' counts allow."""
    unknown, seen = int(counts[vocabulary.unknown_id]), int(np.count_nonzero(counts[1:]))
    _must(part.unknown == unknown)
    _must(seen <= part.types <= seen + max(unknown - 1, 0))  # <unk> is seen as one, and stands for one or more
    lengths = np.array([0, *map(len, vocabulary.words[1:])])  # of words; </s> is none
    lengths[vocabulary.unknown_id] = 0
    known = int(counts @ lengths)
    _must(known + unknown <= part.characters <= known + unknown * _WORD_LIMIT)
