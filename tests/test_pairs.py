"""Minimal pairs: what is read, what is counted, and what the command prints."""

import gzip
import json
import math
import random
import shutil
from pathlib import Path

import pytest

import rnnlm
from rnnlm.errors import RnnlmError
from rnnlm.pairs import MOST_GROUPS, Tally, judged, read_pairs
from rnnlm.run import working
from rnnlm.sources import Source
from rnnlm.text import TextSettings, Tokenizer
from test_cli import SENTENCE, run  # noqa: F401 -- a fixture

TEXT = "the cat sleeps\nthe cats sleep\nthe dog sleeps\nthe dogs sleep\n" * 30
PLAIN = Tokenizer(TextSettings(pretokenized=True))


@pytest.fixture(scope="module")
def agreeing(tmp_path_factory):
    """Return the folder of a small model that knows which noun goes with which verb."""
    folder = tmp_path_factory.mktemp("pairs")
    (folder / "text.txt").write_text(TEXT)
    options = {"pretokenized": True, "hidden": 8, "batch_size": 2, "epochs": 8, "optimizer": "adagrad", "lr": 0.1}
    for _ in rnnlm.train(folder / "text.txt", folder / "model", threads=1, **options):
        pass
    return folder / "model"


@pytest.fixture
def model(run, agreeing):  # noqa: F811
    """Return a copy of that model, where the command line looks for one."""
    return shutil.copytree(agreeing, Path("model"))


def read(tmp_path, content, **options):
    """Read the pairs of a file of this content."""
    path = tmp_path / "pairs"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_pairs([Source.of(path)], options.pop("tokenizer", PLAIN), **options))


@pytest.mark.parametrize(
    ("content", "by", "groups"),
    [
        ("the cat\tthe cats\n", (), ()),
        ("the cat\tthe cats\tnoun\t7\n", (), (("column 3", "noun"),)),
        ("the cat\tthe cats\tnoun\t7\n", ("4", "3"), (("column 4", "7"), ("column 3", "noun"))),
        ("the cat\tthe cats\tnoun\t7\n", ("3", "4", "3", "4"), (("column 3", "noun"), ("column 4", "7"))),
        ('{"sentence_good": "the cat", "sentence_bad": "the cats", "n": 3}\n', ("n", "n"), (("n", "3"),)),
        ("kind\tgood\tbad\r\nnoun\tthe cat\tthe cats\r\n", (), (("kind", "noun"),)),
        ("\ufeff\nGood\tBad\tn\n\nthe cat\tthe cats\t7", ("n",), (("n", "7"),)),
        ("2\tx\tthe ***mask***\tcat\tcats\n", (), (("column 1", "2"),)),
        ("sentence\tgood\tbad\nthe ***mask***\t cat\tcats\n", (), ()),
        (
            '{"sentence_good": "the cat", "sentence_bad": "the cats", "UID": "u", "linguistics_term": "t", "n": 3}\n',
            (),
            (("UID", "u"), ("linguistics_term", "t")),
        ),
        ('{"sentence_good": "the cat", "sentence_bad": "the cats", "n": 3}\n', ("n",), (("n", "3"),)),
    ],
)
def test_forms(tmp_path, content, by, groups):
    """Tabs with and without a header, a gap, and BLiMP's JSON, told by the first line; a column groups once."""
    (pair,) = read(tmp_path, content, by=by)
    assert (pair.good, pair.bad, pair.groups) == (["the", "cat"], ["the", "cats"], groups)


def test_a_sentence_is_one_whatever_stops_it_has(tmp_path, raw):
    """Words are found as in raw text, and no stop ends a sentence; --pretokenized takes blanks alone."""
    content = "Mr. Jones isn't here. He left.\tNo!\n"
    (pair,) = read(tmp_path, content, tokenizer=raw)
    assert pair.good == ["Mr.", "Jones", "is", "n't", "here.", "He", "left", "."]
    (pair,) = read(tmp_path, content, tokenizer=raw, pretokenized=True)
    assert pair.good == content.partition("\t")[0].split()


def test_processes_change_nothing(tmp_path, raw, monkeypatch):
    """Pairs come in the order of the file, with the same words, and an error in one has its line."""
    content = "".join(f"Number {number} isn't here.\tNumber {number} aren't here.\tx\n" for number in range(1000))
    alone = read(tmp_path, content, tokenizer=raw)
    monkeypatch.setattr("rnnlm.pairs.PROCESSES_PAY", 0)
    assert read(tmp_path, content, tokenizer=raw, processes=2) == alone
    with pytest.raises(RnnlmError, match="line 1001: '<s>' is the model's own mark"):
        read(tmp_path, content + "<s>\ta\n", tokenizer=raw, processes=2)


def test_accuracy_counts_a_tie_half():
    """The standard error is that of the mean of 0, 0.5 and 1."""
    tally, values = Tally(), [1, 1, 1, 0, 0.5, 0.5]
    for value in values:
        tally.add(value)
    mean = sum(values) / 6
    assert (tally.pairs, tally.ties, tally.accuracy) == (6, 2, mean)
    variance = sum((value - mean) ** 2 for value in values) / 6
    assert tally.standard_error == pytest.approx(math.sqrt(variance / 6))


def test_the_likelier_sentence_is_what_log_prob_says(run, tmp_path, model):  # noqa: F811
    """Scores are those of each sentence by itself; sentences that read alike are a tie to the last bit."""
    rows = ["the cat sleeps\tthe cat sleep", "the dogs sleeps\tthe dogs sleep", "the zebra sleeps\tthe okapi sleeps"]
    (tmp_path / "pairs.tsv").write_text("\n".join(rows))
    lm = rnnlm.load()
    with working(1) as work:
        found = list(judged(read_pairs([Source.of("pairs.tsv")], lm.saved.tokenizer), lm.saved, work))
    assert [one.correct for one in found] == [1, 0, 0.5]
    assert [one.unknown for one in found] == [False, False, True]
    for one, row in zip(found, rows, strict=True):
        assert (one.good, one.bad) == pytest.approx([lm.log_prob(text) for text in row.split("\t")], rel=1e-5)
    code, out, _ = run("pairs", "pairs.tsv", "--scores")
    assert code == 0
    header, *lines = out.splitlines()
    assert header == "file\tline\tlog_prob_good\tlog_prob_bad\tcorrect\tunknown"
    assert [line.split("\t")[4:] for line in lines] == [["1", "0"], ["0", "0"], ["0.5", "1"]]
    objects = [json.loads(line) for line in run("pairs", "pairs.tsv", "--scores", "--json")[1].splitlines()]
    assert [one["line"] for one in objects] == [1, 2, 3]


def test_what_is_printed(run, tmp_path, model):  # noqa: F811
    """All pairs, those with unknown words apart, then each group, with their standard errors; --json has the same."""
    rows = [("the cat sleeps", "the cat sleep", "cat"), ("the dogs sleep", "the dogs sleeps", "dog")] * 2
    rows += [("the zebra sleeps", "the okapi sleeps", "dog")]
    (tmp_path / "pairs.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    code, out, _ = run("pairs", "pairs.tsv")
    assert code == 0
    assert [line.split() for line in out.splitlines()] == [
        ["pairs", "ties", "accuracy", "std.err"],
        ["all", "5", "1", "90.00%", "8.94%"],
        ["without", "unknown", "words", "4", "0", "100.00%", "0.00%"],
        ["with", "unknown", "words", "1", "1", "50.00%", "0.00%"],
        ["column", "3"],
        ["cat", "2", "0", "100.00%", "0.00%"],
        ["dog", "3", "1", "83.33%", "13.61%"],
    ]
    assert max(map(len, out.splitlines())) <= 80
    report = json.loads(run("pairs", "pairs.tsv", "--json")[1])
    assert (report["pairs"], report["accuracy"], report["unknown"]["ties"]) == (5, 0.9, 1)
    assert report["groups"]["column 3"]["cat"]["pairs"] == 2


def test_a_column_that_only_names_pairs_is_no_group(run, tmp_path, model):  # noqa: F811
    """With too many different values nothing is printed but a warning; all else is as it was."""
    rows = (f"the cat sleeps\tthe cat sleep\titem {number}\n" for number in range(MOST_GROUPS + 5))
    (tmp_path / "pairs.tsv").write_text("".join(rows))
    code, out, err = run("pairs", "pairs.tsv")
    assert (code, len(out.splitlines())) == (0, 4)
    assert "column 3 has too many different values" in err


@pytest.mark.parametrize(("encoding", "pack"), [("utf-8", gzip.compress), ("utf-16", bytes)])
def test_gzip_and_other_encodings_are_read(tmp_path, encoding, pack):
    """A compressed file, and one of two bytes a character, hold the same pairs."""
    content = "the cat sees it\tthe cat see it\tagreement\n" * 2
    expected = [(pair.line, pair.good, pair.bad, pair.groups) for pair in read(tmp_path, content)]
    found = read(tmp_path, pack(content.encode(encoding)), encoding=encoding)
    assert [(pair.line, pair.good, pair.bad, pair.groups) for pair in found] == expected
    assert len(found) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no pairs"),
        (b"\n \n", "has no pairs"),
        (b"good\tbad\n", "has no pairs"),
        (b"\ngood\tbad\n\n", "has no pairs"),
        (b"only one\n", "line 1: there is no pair"),
        (b"a\tb\nc\n", "line 2: there are 1 columns"),
        (b"a\tb\nc\t \n", "line 2: a sentence has no words"),
        (b"a\tb\nc\xff\td\n", "line 2: byte 0xFF at offset 5 is not valid UTF-8; name the encoding"),
        (b"a\tb\nc\0\td\n", "line 2: a NUL character"),
        (b"a\tb\nc <s>\td\n", "line 2: '<s>' is the model's own mark"),
        (b"a\t" + b"b" * 2**21, "line 1: the line has more than"),
        (b"***mask*** a\tb\tc\nd\te\tf\n", "line 2: the sentence has no"),
        (b"a ***mask***\tb\n", "line 1: there is no pair"),
        (b"{}\n", "line 1: there is no text 'sentence_good'"),
        (b'{"sentence_good": "a", "sentence_bad": 3}\n', "line 1: there is no text 'sentence_bad'"),
        (b'{"sentence_good": "\\ud800", "sentence_bad": "a"}\n', "line 1: half of a surrogate pair"),
        (b"{" * 100_000, "line 1: is not a JSON object"),
        (b"[]\n", "line 1: there is no pair"),
    ],
)
def test_what_are_no_pairs_is_said_in_one_sentence(run, tmp_path, model, content, message):  # noqa: F811
    """The file, the line and what to do, exit code 1, and no figures."""
    (tmp_path / "pairs.tsv").write_bytes(content)
    code, out, err = run("pairs", "pairs.tsv")
    assert (code, out) == (1, "")
    assert SENTENCE.fullmatch(err)
    assert err.startswith("Error: pairs.tsv")
    assert message in err


def test_columns_of_scores_are_those_of_the_first_pair(run, tmp_path, model):  # noqa: F811
    """Files whose groups differ are no one table."""
    (tmp_path / "a.tsv").write_text("a\tb\n")
    (tmp_path / "b.jsonl").write_text('{"sentence_good": "a", "sentence_bad": "b", "UID": "x"}')
    code, out, err = run("pairs", "--scores", "a.tsv", "b.jsonl")
    assert (code, len(out.splitlines())) == (1, 2)
    assert err == (
        "Error: b.jsonl, line 1: has other groups than the pairs before; "
        "give such files one at a time, or add --json.\n"
    )
    assert run("pairs", "--scores", "--json", "a.tsv", "b.jsonl")[0] == 0


def test_a_column_that_is_not_there_is_wrong_usage(run, tmp_path, model):  # noqa: F811
    """What --by may name is said."""
    (tmp_path / "pairs.tsv").write_text("a\tb\tc\n")
    (tmp_path / "pairs.jsonl").write_text('{"sentence_good": "a", "sentence_bad": "b"}')
    (tmp_path / "titled.tsv").write_text("good\tbad\tnoun\na\tb\tc\n")
    for arguments, message in (
        (("pairs.tsv", "--by", "9"), "--by takes a number up to 3"),
        (("titled.tsv", "--by", "verb"), "--by takes good, bad, noun, or a number up to 3"),
        (("pairs.jsonl", "--by", "x"), "sentence_bad"),
    ):
        code, out, err = run("pairs", *arguments)
        assert (code, out) == (2, "")
        assert message in err


@pytest.mark.parametrize("seed", range(3))
def test_damaged_pairs_are_refused_or_read(tmp_path, seed):
    """Bytes changed, cut out or put in: a sentence, or pairs of words."""
    choice = random.Random(seed)
    sound = [
        "a b\tc d\tx\n" * 5,
        "1\tx\tthe ***mask*** a\tb\tc\n" * 5,
        '{"sentence_good": "a b", "sentence_bad": "c d", "UID": "u"}\n' * 5,
    ]
    for number in range(100):
        data = bytearray(sound[number % 3].encode())
        for _ in range(choice.randint(1, 4)):
            at = choice.randrange(len(data))
            data[at : at + choice.choice([0, 1, 9])] = choice.choice(
                [b"", b"\t", b"\n", b"\0", choice.randbytes(3), b'"']
            )
        try:
            pairs = read(tmp_path, bytes(data))
        except RnnlmError as error:
            assert "\n" not in str(error)  # noqa: PT017 -- most are refused
        else:
            assert all(pair.good and pair.bad for pair in pairs)
