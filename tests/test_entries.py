"""Entries of the cache: whole or not at all, whatever stands in their place."""

import json
import os
import subprocess
import sys
import textwrap
import zlib
from dataclasses import replace

import numpy as np
import pytest

from rnnlm import entries
from rnnlm.corpus import encode, prepare, reopen, same_text
from rnnlm.errors import SettingsError
from rnnlm.sources import Source
from rnnlm.text import TextSettings, Tokenizer
from rnnlm.vocabulary import VocabularySettings

TEXT = "the cat sat\nthe dog\n\nthe <unk> cat\na cat\n"
PLAIN, WORDS = TextSettings(pretokenized=True), VocabularySettings(6)
FILES = ["counts", "facts.json", "ids", "offsets", "words"]


def in_memory(prepared):
    """Return a prepared text apart from its files, which the tests are going to change."""
    parts = {name: getattr(prepared, name) for name in ("train", "valid")}
    copies = {
        name: replace(part, ids=np.array(part.ids), offsets=np.array(part.offsets)) for name, part in parts.items()
    }
    return replace(prepared, **copies)


class Cache:
    """A folder with an entry, a text that it was made of, and what it must give."""

    def __init__(self, path, text=TEXT, settings=PLAIN, held_out=0.3):
        (path / "corpus.txt").write_text(text, "utf-8")
        self.source, self.folder = Source.of(path / "corpus.txt"), path / "model"
        self.settings, self.held_out = settings, held_out
        self.entry, self.partial = self.folder / "encoded-train", self.folder / ".encoded-train.partial"
        self.fresh = in_memory(self.prepare())
        self.files = {file.name: file.read_bytes() for file in self.entry.iterdir()}

    def prepare(self, **options):
        """Prepare the text."""
        return prepare([self.source], self.folder, self.settings, WORDS, valid_fraction=self.held_out, **options)

    def restore(self):
        """Put all files back as they were."""
        for name, content in self.files.items():
            file = self.entry / name
            if file.is_symlink() or not file.is_file():
                file.unlink(missing_ok=True)
            file.write_bytes(content)

    def mutate(self, change, **arrays):
        """Change the facts and the arrays, and make all checksums right again."""
        for name, array in arrays.items():
            (self.entry / name).write_bytes(array)
        facts = json.loads(self.files["facts.json"])["facts"]
        facts["checksums"] = {name: zlib.crc32((self.entry / name).read_bytes()) for name in FILES if name[0] != "f"}
        changed = change(facts)
        facts = facts if changed is None else changed
        checksum = zlib.crc32(json.dumps(facts, sort_keys=True).encode())
        (self.entry / "facts.json").write_text(json.dumps({"facts": facts, "checksum": checksum}))

    def array(self, name):
        """Return what an array holds."""
        return np.frombuffer(self.files[name], {"ids": "<i4", "words": "u1"}.get(name, "<i8")).copy()


@pytest.fixture
def cache(tmp_path):
    """Return a cache."""
    return Cache(tmp_path)


@pytest.fixture
def tokenized(monkeypatch):
    """Return a list that grows whenever a text is tokenized."""
    calls, honest = [], Tokenizer.made_of_blocks
    monkeypatch.setattr(
        Tokenizer, "made_of_blocks", lambda *rest, **named: calls.append(rest) or honest(*rest, **named)
    )
    return calls


def same(one, other):
    """Say whether two prepared texts are the same in all."""
    parts = [(one.train, other.train), (one.valid, other.valid)]
    for first, second in parts:
        facts = [(part.unknown, part.types, part.characters, part.key) for part in (first, second)]
        if not same_text(first, second) or facts[0] != facts[1] or not np.array_equal(first.offsets, second.offsets):
            return False
    return one.vocabulary == other.vocabulary and one.tokenizer == other.tokenizer


# Damage


def flip(content):
    """Change a bit in the middle."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [flip, lambda content: content[:-1], lambda _: b"", lambda content: content * 2])
def test_damaged_files(cache, tokenized, name, damage):
    """A damaged entry is encoded anew without a word."""
    (cache.entry / name).write_bytes(damage(cache.files[name]))
    assert same(cache.prepare(), cache.fresh)
    assert len(tokenized) == 1
    assert same(cache.prepare(), cache.fresh)
    assert len(tokenized) == 1


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, kind) for name in FILES for kind in ("link", "link to nowhere", "pipe")),
        *((name, "missing") for name in FILES if name != "facts.json"),  # without it, an entry is not known for one
    ],
)
def test_files_of_another_kind(cache, tokenized, tmp_path, name, kind):
    """A file of an entry that is missing, or no plain file, is made anew; no link is followed, no pipe waited for."""
    file, elsewhere = cache.entry / name, tmp_path / "precious"
    file.rename(elsewhere)
    if kind == "pipe":
        os.mkfifo(file)
    elif kind != "missing":
        file.symlink_to(elsewhere if kind == "link" else tmp_path / "nowhere")
    assert same(cache.prepare(), cache.fresh)
    assert len(tokenized) == 1
    assert elsewhere.read_bytes() == cache.files[name]
    assert all(path.is_file() and not path.is_symlink() for path in cache.entry.iterdir())


def at(*path):
    """Return a function that puts a value at a place in the facts."""
    *above, last = path[:-1]

    def change(facts):
        for step in above:
            facts = facts[step]
        facts[last] = path[-1]

    return change


def without(name):
    """Return a function that takes one of the facts away."""
    return lambda facts: facts.pop(name) and None


ODD = [None, True, -1, 0, 1.0, 1e308, 10**9, 10**30, "x", "", [], {}, [1], float("nan")]


@pytest.mark.parametrize(
    "change",
    [
        *(without(name) for name in ("key", "cut", "parts", "tokenizer", "checksums")),
        *(at(name, value) for name in ("key", "cut", "parts", "tokenizer", "checksums") for value in ODD),
        *(at("parts", 0, name, value) for name in ("unknown", "types", "characters") for value in ODD),
        *(at("parts", 0, value) for value in ODD),
        *(at("checksums", name, value) for name in ("ids", "words") for value in ODD),
        *(at("tokenizer", name, value) for name in ("settings", "punkt") for value in [*ODD[1:], {"pretokenized": 1}]),
        *(at("tokenizer", "settings", name, None) for name in ("pretokenized", "lowercase", "encoding", "other")),
        at("cut", 2**63),
        at("parts", 1, "types", 5),
        at("other", 1),
        at("parts", 0, "other", 1),
        lambda facts: facts["parts"].append(facts["parts"][0]),
        lambda facts: facts["parts"].pop() and None,
        *((lambda _, value=value: value) for value in ODD if value is not None),
    ],
)
def test_facts_that_are_none(cache, tokenized, change):
    """Facts that cannot be are damage too, their checksum right or not."""
    cache.mutate(change)
    assert same(cache.prepare(), cache.fresh)
    assert len(tokenized) == 1


@pytest.mark.parametrize("name", ["abbreviations", "collocations", "sentence_starters", "orthography"])
@pytest.mark.parametrize("value", [None, 1, "x", [1], [[1, 2]], {"a": "b"}, {"a": 1.5}])
def test_tokenizer_that_is_none(tmp_path, tokenized, name, value):
    """So are parameters of Punkt that it cannot have learned."""
    cache = Cache(tmp_path, "Mr. Cat sat. Mr. Dog ran.\n\n" * 9, TextSettings())
    tokenized.clear()
    cache.mutate(at("tokenizer", "punkt", name, value))
    assert same(cache.prepare(), cache.fresh)
    assert len(tokenized) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"null",
        b"[]",
        b'{"facts": 1, "checksum": 1}',
        b'{"facts": {}, "checksum": 0, "more": 0}',
        b"[" * 10**6,
        b'{"facts": ' + b"[" * 9000 + b"]" * 9000 + b', "checksum": 0}',
        b"9" * 10**5,
    ],
)
def test_json_that_is_none(cache, tokenized, content):
    """So is JSON of another form, and JSON that is too deep to be read."""
    (cache.entry / "facts.json").write_bytes(content)
    assert same(cache.prepare(), cache.fresh)
    assert len(tokenized) == 1


def test_facts_are_read_under_a_bound(cache, tokenized, monkeypatch):
    """Facts without end are not read."""
    size = len(cache.files["facts.json"])
    monkeypatch.setattr(entries, "_FACTS_LIMIT", size)
    assert same(cache.prepare(), cache.fresh)
    assert tokenized == []
    monkeypatch.setattr(entries, "_FACTS_LIMIT", size - 1)
    assert same(cache.prepare(), cache.fresh)
    assert len(tokenized) == 1


def changed(name, change):
    """Return a function that gives one array of a cache after a change."""

    def give(cache):
        array = cache.array(name)
        result = change(array)
        return {name: (array if result is None else result).tobytes()}

    return give


def put(place, value):
    """Return a function that puts a value into an array."""
    return lambda array: array.__setitem__(place, value)


@pytest.mark.parametrize(
    "give",
    [
        changed("ids", put(0, -1)),
        changed("ids", put(0, 6)),
        changed("ids", put(0, 2**31 - 1)),
        changed("ids", put(0, 0)),
        changed("ids", put(0, 3)),
        changed("ids", put(-1, 1)),
        changed("ids", lambda ids: ids[:-1]),
        changed("ids", lambda ids: ids[:0]),
        changed("ids", lambda ids: np.append(ids, ids)),
        changed("ids", lambda ids: np.frombuffer(ids.tobytes() + b"\0", "u1")),
        changed("offsets", put(0, 1)),
        changed("offsets", put(1, 9)),
        changed("offsets", put(2, -1)),
        changed("offsets", put(2, 2**62)),
        changed("offsets", put(-1, 2)),
        changed("offsets", lambda offsets: offsets[:-1]),
        changed("offsets", lambda offsets: offsets[:1]),
        changed("offsets", lambda offsets: offsets[:0]),
        changed("offsets", lambda offsets: np.append(offsets, offsets[-1])),
        changed("offsets", lambda offsets: np.frombuffer(offsets.tobytes() + b"\0", "u1")),
        changed("words", put(0, 255)),
        changed("words", put(0, 10)),
        changed("words", put(-1, 27)),
        changed("words", lambda words: words[:-5]),
        changed("words", lambda words: words[:0]),
        changed("counts", put(-1, -1)),
        changed("counts", put(1, 2**62)),
        changed("counts", put(0, 2)),
        changed("counts", lambda counts: counts[:-1]),
        changed("counts", lambda counts: np.append(counts, 0)),
        changed("counts", lambda counts: np.frombuffer(counts.tobytes() + b"\0", "u1")),
    ],
)
def test_arrays_that_are_none(cache, tokenized, give):
    """Arrays that are no sentences of the vocabulary are damage too, their checksums right or not."""
    cache.mutate(lambda _: None, **give(cache))
    assert reopen(cache.folder, cache.fresh.train.key, cache.fresh.valid.key) is None
    assert same(cache.prepare(), cache.fresh)
    assert len(tokenized) == 1


def test_arrays_of_a_validation_text(cache, tokenized):
    """The same holds for a text that was encoded with a model's vocabulary, which its entry does not hold."""
    arguments = [cache.source], cache.folder, cache.fresh.tokenizer, cache.fresh.vocabulary
    fresh = encode(*arguments)
    fresh = replace(fresh, ids=np.array(fresh.ids))
    place = cache.folder / "encoded-valid"
    assert sorted(file.name for file in place.iterdir()) == ["facts.json", "ids", "offsets"]
    facts = json.loads((place / "facts.json").read_bytes())["facts"]
    for value in (-1, len(cache.fresh.vocabulary), 0):
        ids = np.array(fresh.ids)
        ids[1] = value
        (place / "ids").write_bytes(ids.tobytes())
        facts["checksums"]["ids"] = zlib.crc32(ids.tobytes())
        stored = {"facts": facts, "checksum": zlib.crc32(json.dumps(facts, sort_keys=True).encode())}
        (place / "facts.json").write_text(json.dumps(stored))
        tokenized.clear()
        assert same_text(encode(*arguments), fresh)
        assert len(tokenized) == 1


@pytest.mark.parametrize("settings", [PLAIN, TextSettings()], ids=["plain", "raw"])
@pytest.mark.parametrize("corrected", [False, True])
def test_random_damage(tmp_path, settings, corrected):
    """Whatever is changed, the text is the same as before; with a right checksum, one of that size and vocabulary."""
    cache = Cache(tmp_path, TEXT * 3, settings)
    rng = np.random.default_rng(1)
    for _ in range(100):
        cache.restore()
        name = FILES[rng.integers(len(FILES))]
        content = bytearray(cache.files[name])
        if rng.random() < 0.3:
            del content[rng.integers(len(content)) :]
        else:
            for place in rng.integers(len(content), size=rng.integers(1, 4)):
                content[place] ^= 1 << rng.integers(8)
        if corrected and name != "facts.json":
            cache.mutate(lambda _: None, **{name: bytes(content)})
        else:
            (cache.entry / name).write_bytes(content)
        found = cache.prepare()
        if corrected:
            assert len(found.train.ids) + len(found.valid.ids) == len(cache.array("ids"))
            assert max(found.train.ids.max(), found.valid.ids.max()) < len(found.vocabulary)
            assert found.tokenizer == cache.fresh.tokenizer
        else:
            assert same(found, cache.fresh)


# What is not ours


def tree(folder):
    """Return all that is in a folder."""
    return {str(path): path.is_file() and path.read_bytes() for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("name", ["encoded-train", "encoded-valid", ".encoded-train.partial", ".encoded-valid.partial"])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("file", "this is no folder"),
        ("pipe", "this is no folder"),
        ("link", "this is a symbolic link"),
        ("link to nowhere", "this is a symbolic link"),
        ("thesis", r"has not written 'thesis\.txt'"),
        ("thesis and facts", r"has not written 'thesis\.txt'"),
        ("folder of our name", "has not written 'ids'"),
        ("no facts", r"has no facts\.json"),
    ],
)
def test_what_is_not_ours_is_left_alone(tmp_path, tokenized, name, kind, message):
    """What rnnlm has not written, in the place of an encoded corpus, is an error that names it, and stays as it is."""
    if (kind, name[0]) == ("no facts", "."):
        return  # what a kill leaves looks like that, and is removed
    elsewhere, place = tmp_path / "elsewhere", tmp_path / "model" / name
    elsewhere.mkdir()
    place.parent.mkdir()
    (elsewhere / "facts.json").write_text("precious")
    (tmp_path / "corpus.txt").write_text(TEXT)
    if "link" in kind:
        place.symlink_to(elsewhere if kind == "link" else tmp_path / "nowhere")
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "file":
        place.write_text("precious")
    else:
        place.mkdir()
        for file in {"no facts": ["words"], "thesis": ["thesis.txt"]}.get(kind, ["facts.json", "thesis.txt"]):
            (place / file).write_text("precious")
        if kind == "folder of our name":
            (place / "ids").mkdir()
            (place / "thesis.txt").unlink()
    before = tree(tmp_path)
    with pytest.raises(SettingsError, match=rf"{name}: .*{message}.*; move it away, or name another folder with"):
        prepare([Source.of(tmp_path / "corpus.txt")], tmp_path / "model", PLAIN, WORDS)
    assert tree(tmp_path) == before
    assert tokenized == []


@pytest.mark.parametrize("files", [(), ("ids",), ("ids", "offsets", "words", "counts"), ("ids", "facts.json")])
def test_what_a_kill_leaves(cache, tokenized, files):
    """What a kill has left of an encoded corpus is removed by the next run, and so is an empty folder."""
    cache.partial.mkdir()
    for name in files:
        (cache.partial / name).write_bytes(b"half")
    assert same(cache.prepare(), cache.fresh)
    assert tokenized == []
    assert [path.name for path in cache.folder.iterdir()] == ["encoded-train"]
    for name in FILES:
        (cache.entry / name).unlink()
    assert same(cache.prepare(), cache.fresh)


def test_an_entry_is_known_while_it_is_removed(cache, monkeypatch):
    """The facts go last: what a kill leaves while an old entry is removed is not taken for a user's."""
    path = type(cache.entry)
    unlink, removed = path.unlink, []

    def kill(file, **options):
        removed.append(file.name)
        if file.parent == cache.entry and file.name == "facts.json":
            raise KeyboardInterrupt
        unlink(file, **options)

    (cache.entry / "ids").write_bytes(b"")
    with monkeypatch.context() as patch:
        patch.setattr(path, "unlink", kill)
        with pytest.raises(KeyboardInterrupt):
            cache.prepare()
    assert [file.name for file in cache.entry.iterdir()] == ["facts.json"]
    assert same(cache.prepare(), cache.fresh)


def test_a_place_is_looked_at_again(cache, tokenized, tmp_path, monkeypatch):
    """What comes into the place while the text is tokenized is not removed either."""
    (cache.entry / "ids").write_bytes(b"")
    honest = entries.finish

    def finish(*arguments):
        (cache.entry / "thesis.txt").write_text("precious")
        honest(*arguments)

    monkeypatch.setattr(entries, "finish", finish)
    with pytest.raises(SettingsError, match=r"has not written 'thesis\.txt'"):
        cache.prepare()
    assert sorted(path.name for path in cache.entry.iterdir()) == sorted([*FILES, "thesis.txt"])
    assert not cache.partial.exists()


@pytest.mark.parametrize(("folder", "message"), [("a\0b", "no folder has such a name"), ("x" * 300, "name too long")])
def test_folders_that_cannot_be(tmp_path, folder, message):
    """A folder that no system has is an error as well."""
    with pytest.raises(SettingsError, match=rf"{message}.*name another"):
        entries.check_places(tmp_path / folder)


# The disk


def test_a_full_disk(cache, monkeypatch):
    """A full disk is an error in the system's own words, that names the folder and leaves nothing half done."""

    class Full:
        def write(self, _data):
            raise OSError(28, "No space left on device")

    (cache.entry / "ids").write_bytes(b"")
    honest = entries.write
    monkeypatch.setattr(entries, "write", lambda _file, array: honest(Full(), array))
    with pytest.raises(SettingsError, match=r"model: cannot be written \(no space left on device\); make room, or"):
        cache.prepare()
    assert [path.name for path in cache.folder.iterdir()] == ["encoded-train"]


FULL = """
    import resource, sys
    from pathlib import Path
    from rnnlm.corpus import encode_once, prepare
    from rnnlm.errors import RnnlmError
    from rnnlm.sources import Source
    from rnnlm.text import TextSettings, Tokenizer
    from rnnlm.vocabulary import VocabularySettings

    sources, settings = [Source.of("corpus.txt")], TextSettings(pretokenized=True)
    ready = prepare(sources, Path("model"), settings, VocabularySettings())
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
    for work in (
        lambda: prepare(sources, Path("other"), settings, VocabularySettings()),
        lambda: encode_once(sources, ready.tokenizer, ready.vocabulary),
    ):
        try:
            work()
        except RnnlmError as error:
            print(error)
    print(*Path("other").iterdir(), *Path("temporary").iterdir())
"""


def test_a_file_that_cannot_grow(tmp_path):
    """The system's reason is told where a file is written in part: no number of bytes, which nobody can mend."""
    (tmp_path / "corpus.txt").write_text("the cat sat\n" * 5000)
    (tmp_path / "temporary").mkdir()
    command = [sys.executable, "-c", textwrap.dedent(FULL)]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary")}
    told = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.splitlines() == [
        "other: cannot be written (file too large); make room, or name another folder with --model",
        "temporary files: cannot be written (file too large); make room, or name another folder in the environment "
        "variable TMPDIR",
        "",
    ]
    assert told.stderr == ""
