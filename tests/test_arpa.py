"""N-gram models in ARPA files: what is read, what is refused, and the probabilities, held against KenLM's."""

import gzip
import math
import random
import sys
import types

import numpy as np
import pytest

from rnnlm.arpa import KenlmBinary, read_arpa
from rnnlm.errors import ModelError, RnnlmError, TextError

SMALL = r"""made by hand
# for these tests
\data\
ngram 1=7
ngram 2=6
ngram 3=3

\1-grams:
-1.4	<unk>	-0.1
-99	<s>	-0.5
-0.9	</s>
-0.7	the	-0.35
-1.0	cat	-0.25
-1.1 dog -0.15
-0.8	sleeps

\2-grams:
-0.4	<s> the	-0.3
-0.5	the cat	-0.2
-0.6	the dog
-0.3	cat sleeps	0.12
-0.2	sleeps </s>
-1.3	the <unk>	-0.05

\3-grams:
-0.1	<s> the cat
-0.15	cat sleeps </s>
-0.7	the <unk> sleeps

\end\
"""
SENTENCES = ["the cat sleeps", "", "dog", "the zebra sleeps", "zebra the cat the dog sleeps the cat", "cat cat cat"]
# By the package kenlm 0.3.0, full_scores of each sentence: log10 p in the fewest digits of a single, and lengths
KENLM = [
    "-0.4 -0.1 -0.5 -0.15",
    "-1.4",
    "-1.6 -1.05",
    "-0.4 -1.5999999 -0.7 -0.2",
    "-1.9 -0.8 -0.5 -1.15 -0.6 -0.95000005 -0.7 -0.5 -1.35",
    "-1.5 -1.25 -1.25 -1.15",
]
LENGTHS = [[2, 3, 2, 3], [1], [1, 1], [2, 2, 3, 2], [1, 1, 2, 1, 2, 1, 1, 2, 1], [1, 1, 1, 1]]


@pytest.fixture
def arpa(write):
    """Return a function that reads the text of an ARPA file."""
    return lambda text, name="small.arpa": read_arpa(write(text, name))


def log10(model, sentence):
    """Return log10 p of each word of a sentence and of its end."""
    return model.log_probs([sentence.split()])[0] / math.log(10)


def test_probabilities_are_those_of_kenlm(arpa):
    """Longest n-grams, back-offs of the histories that are dropped, missing ones, and unknown words in histories.

    They are KenLM's to the last bit, as they are added up in its order.
    """
    model = arpa(SMALL)
    for sentence, expected in zip(SENTENCES, KENLM, strict=True):
        assert " ".join(map(str, log10(model, sentence).astype(np.float32))) == expected


def test_lengths_and_numbers_are_those_of_kenlm(arpa):
    """The n-gram that was found has its length; words count from 1 in the file's order, `<unk>` is 0 wherever it is."""
    model = arpa(SMALL)
    for sentence, expected in zip(SENTENCES, LENGTHS, strict=True):
        assert model.lengths(sentence.split()) == expected
    assert model.numbers == {"<unk>": 0, "<s>": 1, "</s>": 2, "the": 3, "cat": 4, "dog": 5, "sleeps": 6}
    unknown = "-1.4\t<unk>\t-0.1\n"
    assert arpa(SMALL.replace(unknown, "").replace("\n\n\\2-", f"\n{unknown}\n\\2-")).numbers == model.numbers


def test_sentences_are_independent(arpa):
    """A sentence has the same probabilities by itself and among others."""
    model = arpa(SMALL)
    together = model.log_probs([sentence.split() for sentence in SENTENCES])
    for sentence, found in zip(SENTENCES, together, strict=True):
        assert found.tolist() == model.log_probs([sentence.split()])[0].tolist()


def test_what_is_unknown(arpa):
    """Words without an entry, `<unk>` itself and `<s>`, which is never predicted; `</s>` is known."""
    model = arpa(SMALL)
    assert model.unknown(["the", "zebra", "<unk>", "<s>", "</s>"]) == [False, True, True, True, False]
    assert log10(model, "<s>")[0] == log10(model, "zebra")[0]


@pytest.mark.parametrize(
    "change",
    [
        ("\t", " "),
        (" ", "\t"),
        ("\n", "\r\n"),
        ("\t", " \t "),
        ("<unk>", "<UNK>"),
        ("-99\t<s>", "0\t<s>"),
        ("-99\t<s>", "-inf\t<s>"),
        ("ngram 1=7", "ngram  1 = 7"),
        ("made by hand\n# for these tests\n", ""),
        ("<s> the cat\n", "<s> the cat\t0\n"),
    ],
)
def test_ways_to_write_the_same(arpa, change):
    """Tabs or blanks, either mark of the unknown word, `<s>` with any probability, text before the model or none."""
    start, *rest = SMALL.partition("\\data\\")
    text = SMALL.replace(*change) if change[0] in start else start + "".join(rest).replace(*change)
    assert log10(arpa(text), SENTENCES[3]).tolist() == log10(arpa(SMALL), SENTENCES[3]).tolist()


def test_gzip_is_read_as_it_is(arpa):
    """A compressed file is the same model."""
    assert (
        log10(arpa(gzip.compress(SMALL.encode()), "x.gz"), "the cat").tolist() == log10(arpa(SMALL), "the cat").tolist()
    )


def test_without_an_unknown_word(arpa):
    """Where a file has no `<unk>`, an unknown word has log10 p -100, as in KenLM."""
    text = SMALL.replace("-1.4\t<unk>\t-0.1\n", "").replace("1=7", "1=6")
    assert log10(arpa(text), "zebra")[0] == pytest.approx(-100.5)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("-0.7\tthe", "0.7\tthe", "line 12: log10 p is 0.7, and a probability is at most 1"),
        ("-0.7\tthe", "nan\tthe", "line 12"),
        ("-0.7\tthe", "x\tthe", "line 12"),
        ("the\t-0.35", "the\tinf", "line 12"),
        ("the\t-0.35", "the\tnan", "line 12"),
        ("the\t-0.35", "the\t-0.3\t1", "line 12"),
        ("-0.7\tthe\t-0.35", "-0.7", "line 12"),
        ("-1.0\tcat", "-1.0\tthe", "line 13: 'the' stands in the file twice"),
        ("ngram 2=6", "ngram 2=5", "line 23: there are more 2-grams than the 5 announced"),
        ("ngram 2=6", "ngram 2=7", "line 25: 7 2-grams are announced, and 6 are there"),
        ("ngram 2=6", "ngram 3=6", "line 5: the orders must be 1, 2, 3"),
        ("ngram 2=6", "ngram x=6", "line 5"),
        ("ngram 1=7", "ngram 1=-7", "line 4"),
        ("\\2-grams:", "\\3-grams:", r"line 17: '\\\\3-grams:' stands where \\2-grams: must stand"),
        ("\\end\\", "", "line 30: the end of the file stands where"),
        ("\\end\\\n", "\\end\\\nmore\n", "line 31: there is text after"),
        ("\\data\\", "data", "no line .data. up to here, so this is no ARPA file"),
        ("<s> the cat\n", "<s> the cat\t-1\n", "line 26"),
        ("-0.9\t</s>", "-0.9\tend", "has no </s>"),
    ],
)
def test_what_is_no_model_is_refused_with_its_line(arpa, old, new, message):
    """Each rule of the format, one sentence with the file and the line."""
    assert old in SMALL
    with pytest.raises(ModelError, match=message) as caught:
        arpa(SMALL.replace(old, new))
    assert "small.arpa" in str(caught.value)


def test_bytes_that_are_no_text(arpa):
    """Words that are not UTF-8 are refused with their line; an empty file is no model."""
    with pytest.raises(TextError, match=r"line 13: byte 0xE4 at offset 139 is not valid UTF-8; convert the file"):
        arpa(SMALL.encode().replace(b"cat", b"c\xe4t"))
    with pytest.raises(ModelError, match="line 1"):
        arpa("")
    with pytest.raises(TextError, match="truncated or damaged gzip"):
        arpa(gzip.compress(SMALL.encode())[:-20], "cut.gz")


def test_a_line_without_end_is_refused(arpa, monkeypatch):
    """Memory is bounded, whatever a file holds."""
    monkeypatch.setattr("rnnlm.sources.LINE_LIMIT", 1000)
    with pytest.raises(TextError, match=r"line 3: the line has more than 1,000 characters"):
        arpa("a\nb\n" + "x" * 2000)


def test_damaged_files_end_in_a_model_or_in_a_sentence(arpa):
    """Mutated files are read or refused in one sentence that names them; no number leaves what can be computed."""
    choose, content = random.Random(3), SMALL.encode()
    pieces = [b"\x00", b"\xff", b"\t", b" ", b"\n", b"-", b"nan", b"1e999", b"inf", b"9" * 30, b"\\", b"<unk>", b""]
    for _ in range(300):
        data = bytearray(content)
        for _ in range(choose.randint(1, 3)):
            at = choose.randrange(len(data))
            data[at : at + choose.randint(0, 12)] = choose.choice(pieces)
        said = ""
        try:
            found = log10(arpa(bytes(data)), SENTENCES[4])
        except RnnlmError as error:
            said = str(error)
        assert ("small.arpa" in said and "\n" not in said) if said else not np.isnan(found).any()


class FakeState:
    """What stands for kenlm.State."""


class FakeModel:
    """What stands for kenlm.Model: every word has log10 p -1, unknown ones -2."""

    order = 3

    def __init__(self, path):
        if "broken" in path:
            raise OSError("Cannot read model 'broken'\n (lm/model.cc:1 threw)")
        self.known = {"<s>", "</s>", "<unk>", "the"}

    def __contains__(self, word):
        """Say whether a word is known."""
        return word in self.known

    def BeginSentenceWrite(self, state):  # noqa: N802 -- kenlm's
        """Begin a sentence."""

    def BaseScore(self, state, word, after):  # noqa: N802 -- kenlm's
        """Score a word."""
        assert state is not after
        return -2.0 if word == "<unk>" else -1.0

    def BaseFullScore(self, state, word, after):  # noqa: N802 -- kenlm's
        """Score a word, and say how long its n-gram is."""
        assert state is not after
        return types.SimpleNamespace(ngram_length=1 if word == "<unk>" else 2)


@pytest.fixture
def kenlm(monkeypatch):
    """Put a stand-in for the package kenlm in its place."""
    module = types.SimpleNamespace(Model=FakeModel, State=FakeState)
    monkeypatch.setitem(sys.modules, "kenlm", module)


def test_binaries_are_read_by_kenlm(kenlm, write):
    """The words stand at the end of the file, by id; probabilities and lengths come from the package."""
    source = write(b"mmap lm http://kheafield.com/code format version 5\n\0...<unk>\0<s>\0</s>\0the\0", "x.binary")
    model = KenlmBinary(source.path)
    assert model.words == {"</s>", "the"}
    assert model.unknown(["the", "a", "<unk>"]) == [False, True, True]
    np.testing.assert_allclose(log10(model, "the zebra"), [-1, -2, -1])
    assert model.lengths(["the", "zebra"]) == [2, 1, 2]
    assert model.numbers == {"<unk>": 0, "<s>": 1, "</s>": 2, "the": 3}


@pytest.mark.parametrize(
    "content", [b"mmap lm http://kheafield.com/code", b"..<unk>\0<s>\0</s>\0a\0", b"<unk>\0\xff", b""]
)
def test_binaries_without_their_words_are_refused(kenlm, write, content):
    """A list that is missing, or is of other words, is not believed."""
    with pytest.raises(ModelError, match=r"x\.binary"):
        KenlmBinary(write(content, "x.binary").path)


def test_what_kenlm_says_is_a_sentence(kenlm, write):
    """Its message becomes part of ours."""
    with pytest.raises(ModelError, match=r"KenLM cannot read it \(Cannot read model"):
        KenlmBinary(write(b"x", "broken").path)


def test_the_package_may_be_missing(monkeypatch, write):
    """Without it, the sentence says how to install it."""
    monkeypatch.setitem(sys.modules, "kenlm", None)
    with pytest.raises(ModelError, match=r"pip install 'rnnlm-numpy\[kenlm\]'"):
        KenlmBinary(write(b"x", "x.binary").path)
