import os
from pathlib import Path

import numpy as np
import pytest

from rnnlm.errors import SettingsError, VocabularyError
from rnnlm.settings import VocabularySettings
from rnnlm.vocabulary import SENTENCE_END, UNKNOWN, Vocabulary, make_vocabulary, words_to_know

COUNTS = {"b": 2, "the": 5, "a": 2, "rare": 1, "cat": 3, "once": 1}


@pytest.fixture
def listing(tmp_path):
    """Return a function that writes a vocabulary file and gives its path."""

    def write(content):
        path = tmp_path / "words.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_ids_are_frequency_ranks():
    """Id 0 is </s>; the others are ranked by count, equal counts by first appearance, an unused <unk> last."""
    vocabulary = Vocabulary.from_counts(COUNTS, sentences=4)
    assert vocabulary.words == [SENTENCE_END, "the", "cat", "b", "a", "rare", "once", UNKNOWN]
    assert vocabulary.counts.tolist() == [4, 5, 3, 2, 2, 1, 1, 0]
    assert vocabulary.counts.dtype == np.int64
    assert vocabulary.ids == {word: number for number, word in enumerate(vocabulary.words)}
    assert vocabulary.unknown_id == len(vocabulary) - 1 == 7


@pytest.mark.parametrize(("literal", "place"), [(9, 1), (5, 2), (4, 2), (3, 3), (2, 5), (1, 7)])
def test_place_of_a_literal_unknown(literal, place):
    """A literal <unk> stands where its count puts it, after words of the same count."""
    vocabulary = Vocabulary.from_counts({UNKNOWN: literal, **COUNTS}, 4)
    assert vocabulary.unknown_id == place
    assert vocabulary.counts[place] == literal
    assert np.all(np.diff(vocabulary.counts[1:]) <= 0)


def test_cut_off_words_count_as_unknown():
    """The size counts </s> and <unk>; what it or the least count cuts off is added to the count of <unk>."""
    vocabulary = Vocabulary.from_counts({UNKNOWN: 1, **COUNTS}, 4, size=5)
    assert vocabulary.words == [SENTENCE_END, "the", UNKNOWN, "cat", "b"]
    assert vocabulary.counts.tolist() == [4, 5, 5, 3, 2]
    assert Vocabulary.from_counts(COUNTS, 4, min_count=3).words == [SENTENCE_END, UNKNOWN, "the", "cat"]
    assert len(Vocabulary.from_counts(COUNTS, 4, size=100)) == 8
    assert len(Vocabulary.from_counts(COUNTS, 4, size=8)) == 8


def test_counts_add_up():
    """No token is lost: the counts of all words are those that were given."""
    for size in (3, 4, 7, None):
        for min_count in (1, 2):
            vocabulary = Vocabulary.from_counts(COUNTS, 4, size, min_count)
            assert vocabulary.counts[1:].sum() == sum(COUNTS.values())


def test_no_room_or_no_words():
    """A vocabulary without a word of the text is an error that names the option."""
    for size in (0, 1, 2):
        with pytest.raises(SettingsError, match="--vocab-size"):
            VocabularySettings(vocab_size=size)
    with pytest.raises(VocabularyError, match=r"^a\.txt: no word occurs 6 times or more; give --min-count 1"):
        Vocabulary.from_counts(COUNTS, 4, min_count=6, text="a.txt")
    with pytest.raises(VocabularyError, match=r"^b\.txt: there is no word but <unk>; give a text with words"):
        Vocabulary.from_counts({UNKNOWN: 3}, 1, text="b.txt")


def test_encode_and_decode():
    """Words become ids and ids words; a word without an id becomes <unk>, and </s> is 0."""
    vocabulary = Vocabulary.from_counts(COUNTS, 4)
    ids = vocabulary.encode(["the", "dog", UNKNOWN, "cat", SENTENCE_END])
    assert ids.dtype == np.int32
    assert ids.tolist() == [1, 7, 7, 2, 0]
    assert vocabulary.decode(ids) == ["the", UNKNOWN, UNKNOWN, "cat", SENTENCE_END]
    assert vocabulary.encode([]).shape == (0,)


@pytest.mark.parametrize(
    "words",
    [
        ["</s>", "a", "a", "<unk>"],
        ["</s>", "<unk>"],
        ["<unk>", "</s>", "a", "b"],
        ["</s>", "a", "b", "c"],
        ["</s>", "<s>", "a", "<unk>"],
        ["</s>", "", "a", "<unk>"],
        ["</s>", 1, "a", "<unk>"],
        ["</s>", None, "a", "<unk>"],
        ["</s>", b"a", "b", "<unk>"],
        ["</s>", ["a"], "b", "<unk>"],
        *(["</s>", f"a{character}b", "c", "<unk>"] for character in " \t\n\r\0\x1b\x7f\x85\x9b\ud800\ufdd0\uffff"),
        [],
    ],
)
def test_words_must_be_sound(words):
    """A vocabulary has every word once, those that the model needs, and none that no text has."""
    with pytest.raises(VocabularyError, match="a vocabulary must"):
        Vocabulary(words, [4, 3, 2, 1])


@pytest.mark.parametrize(
    "counts",
    [
        [4, 3, 2],
        [4, 3, 2, 1, 1],
        [4, 2, 3, 1],
        [4, 3, 2, -1],
        [-4, 3, 2, 1],
        [4, 3, 2, True],
        [4, 3, 2, 1.0],
        [4, 3, 2, float("nan")],
        [4, 3, 2, "1"],
        [4, 3, 2, None],
        [2**63, 3, 2, 1],
        [2**62, 2**62, 2, 1],
        [[4, 3, 2, 1]],
        [],
        np.array([4, 3, 2, 1], np.int32),
        np.array([4, 3, 2, 1], np.uint64),
        np.array([4, 3, 2, 1], ">i8"),
        np.array([4.0, 3.0, 2.0, 1.0]),
        np.array([True, True, True, True]),
        np.array([[4, 3, 2, 1]]),
        np.array(["4", "3", "2", "1"]),
        np.array(4),
    ],
)
def test_counts_must_be_sound(counts):
    """A vocabulary has a whole number for each word, not negative and not above that before; nothing is converted."""
    with pytest.raises(VocabularyError, match="a vocabulary must"):
        Vocabulary(["</s>", "a", "b", "<unk>"], counts)
    assert Vocabulary(["</s>", "a", "b", "<unk>"], [1, 3, 2, 2]).counts.tolist() == [1, 3, 2, 2]


def test_a_vocabulary_keeps_its_counts():
    """The counts are a vocabulary's own: changing the array that they came from changes nothing."""
    given = np.array([4, 3, 2])
    vocabulary = Vocabulary(["</s>", "a", "<unk>"], given)
    given[0] = 9
    assert vocabulary.counts.tolist() == [4, 3, 2]


# Files


def test_file_is_ranked_by_the_text(listing):
    """Words of a file are ranked by the training text, their own counts ignored; those that it lacks come last."""
    path = listing("zebra\t900\nonce\na 3\nthe\nyak\n")
    vocabulary = Vocabulary.from_file(path, COUNTS, 4)
    assert vocabulary.words == [SENTENCE_END, UNKNOWN, "the", "a", "once", "zebra", "yak"]
    assert vocabulary.counts.tolist() == [4, 6, 5, 2, 1, 0, 0]


def test_marks_in_a_file_are_optional(listing):
    """`</s>` and `<unk>` need not be in a vocabulary file; they are added."""
    with_marks = Vocabulary.from_file(listing("<unk>\nthe\n</s>\ncat\n"), COUNTS, 4)
    assert with_marks == Vocabulary.from_file(listing("the\ncat\n"), COUNTS, 4)
    all_words = Vocabulary.from_file(listing("\n".join(COUNTS)), COUNTS, 4)
    assert all_words.words[-1] == UNKNOWN


def test_sentence_start_in_a_file(listing):
    """`<s>` in a vocabulary file is an error that names the line: it is never predicted."""
    with pytest.raises(VocabularyError, match=r"words\.txt, line 3: <s> is never predicted"):
        Vocabulary.from_file(listing("\nthe\n<s>\n"), COUNTS, 4)


def test_word_twice_in_a_file(listing):
    """A word that stands twice in a vocabulary file is an error that names both lines."""
    with pytest.raises(VocabularyError, match=r"words\.txt, line 4: 'the' is on line 1 too"):
        Vocabulary.from_file(listing("the 3\ncat\na\nthe\t5\n"), COUNTS, 4)


@pytest.mark.parametrize("line", ["two words", "the 1 2", "a b\t3"])
def test_too_much_on_a_line(listing, line):
    """A line with more than a word and a count is an error that names the line."""
    with pytest.raises(VocabularyError, match=r"words\.txt, line 2: put one word on each line"):
        Vocabulary.from_file(listing(f"cat\n{line}\n"), COUNTS, 4)


def test_layout_of_a_file(listing):
    """Blank lines of a vocabulary file, CR LF, a byte-order mark and a missing last newline change nothing."""
    plain = Vocabulary.from_file(listing("the\ncat\nno\u00a0break\n"), COUNTS, 4)
    assert "no\u00a0break" in plain.ids
    assert Vocabulary.from_file(listing("\ufeffthe\r\n\r\n cat \t 7\r\n\nno\u00a0break -1.5"), COUNTS, 4) == plain


def test_file_in_another_encoding(listing):
    """A vocabulary file that is not UTF-8 is an error that names the line."""
    with pytest.raises(VocabularyError, match=r"words\.txt, line 2: .*save the file as UTF-8"):
        Vocabulary.from_file(listing("the\ncafé\n".encode("latin-1")), COUNTS, 4)


@pytest.mark.parametrize("character", "\x1b\x07\0\x0b\x0c\x7f\x85\x9b\ufffe")
def test_control_characters_in_a_file(listing, character):
    """A control character in a vocabulary file is an error that names the line."""
    with pytest.raises(VocabularyError, match=rf"words\.txt, line 3: U\+{ord(character):04X} is a control character"):
        Vocabulary.from_file(listing(f"the\n\na{character}b\n"), COUNTS, 4)


def test_carriage_return_within_a_line(listing):
    """A carriage return that ends no line is such an error too: the parts of the line are not put together."""
    with pytest.raises(VocabularyError, match=r"words\.txt, line 1: U\+000D"):
        Vocabulary.from_file(listing("the\rcat\r"), COUNTS, 4)


def test_lower_case_of_a_file(listing):
    """With `--lowercase` a vocabulary file is folded as well; two of its words that become the same are one."""
    path = listing("The\nthe\nCAT 3\n<UNK>\n</S>\nZebra\n")
    folded = make_vocabulary(VocabularySettings(vocab=path), COUNTS, 4, lowercase=True)
    assert folded == Vocabulary.from_file(listing("the\ncat\nzebra\n"), COUNTS, 4)
    path = listing("The\nthe\nZebra\n")
    assert words_to_know(VocabularySettings(vocab=path), lowercase=True)[1:-1] == ["the", "zebra"]
    assert words_to_know(VocabularySettings(vocab=path))[1:-1] == ["The", "the", "Zebra"]
    for content, message in [("The\n<S>\n", "line 2: <s> is never predicted"), ("The\nThe\n", "line 2: 'The' is on")]:
        with pytest.raises(VocabularyError, match=message):
            Vocabulary.from_file(listing(content), COUNTS, 4, lowercase=True)


def test_file_without_words(listing):
    """A vocabulary file that is missing or has no words is an error that names it."""
    for content in ("", "\n", "<unk>\n</s>\n"):
        with pytest.raises(VocabularyError, match=r"words\.txt: there are no words in it; put one on each line"):
            words_to_know(VocabularySettings(vocab=listing(content)))
    with pytest.raises(VocabularyError, match=r"none\.txt: cannot be read \(no such file or directory\); name another"):
        words_to_know(VocabularySettings(vocab=Path("none.txt")))


def test_file_that_is_none(listing, tmp_path, monkeypatch):
    """A vocabulary file that is a directory, a pipe or too large is an error that names it, and nothing is waited for.

    So are a name that no file can have, a file that is not to be read, and a line that never ends.
    """
    words = listing("the\n")
    os.mkfifo(tmp_path / "pipe")
    long = "x" * 300
    for path, message in [
        (tmp_path, "is a directory"),
        (tmp_path / "pipe", "not a plain file"),
        (Path("/dev/zero"), "not a plain file"),
        (words / "below", "not a directory"),
        (tmp_path / long, "file name too long"),
    ]:
        with pytest.raises(VocabularyError, match=rf"{message}.*; name another file with --vocab$"):
            words_to_know(VocabularySettings(vocab=path))
    monkeypatch.setattr("rnnlm.vocabulary._LINE_LIMIT", 9)
    with pytest.raises(VocabularyError, match=r"line 2: the line has more than 9 bytes; put one word on each line"):
        words_to_know(VocabularySettings(vocab=listing("12345678\n123456789\n")))
    monkeypatch.setattr("rnnlm.vocabulary._FILE_LIMIT", 3)
    with pytest.raises(VocabularyError, match=r"words\.txt: a file of 4 bytes is no list of words; name another"):
        words_to_know(VocabularySettings(vocab=listing("the\n")))
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(VocabularyError, match=r"words\.txt: cannot be read \(permission denied\); name another"):
        words_to_know(VocabularySettings(vocab=words))


def refuse(*_, **__):
    """Stand in for the opening of a file that is another user's."""
    raise PermissionError(13, "Permission denied")


def test_settings_choose(listing):
    """The settings make the vocabulary from the text or, where there is one, from the file."""
    assert make_vocabulary(VocabularySettings(vocab_size=3), COUNTS, 4).words == [SENTENCE_END, UNKNOWN, "the"]
    settings = VocabularySettings(vocab_size=3, vocab=listing("cat\nonce\nyak\n"))
    assert make_vocabulary(settings, COUNTS, 4).words == [SENTENCE_END, UNKNOWN, "cat", "once", "yak"]
    assert words_to_know(VocabularySettings(vocab_size=None)) == []
    assert len(make_vocabulary(VocabularySettings(vocab_size=None, min_count=1), COUNTS, 4)) == 8


def test_unknown_words_are_learned_by_default():
    """Without `--min-count` words that occur once are cut off, unless the training text has an `<unk>` of its own."""
    once = [word for word, count in COUNTS.items() if count == 1]
    vocabulary = make_vocabulary(VocabularySettings(), COUNTS, 4)
    assert not set(once) & set(vocabulary.words)
    assert vocabulary.counts[vocabulary.unknown_id] == len(once) == 2
    marked = make_vocabulary(VocabularySettings(), {**COUNTS, UNKNOWN: 1}, 4)
    assert set(marked.words) == {SENTENCE_END, UNKNOWN, *COUNTS}
    assert len(make_vocabulary(VocabularySettings(min_count=3), {**COUNTS, UNKNOWN: 1}, 4)) == 4
    with pytest.raises(
        VocabularyError, match=r"^a\.txt: no word occurs 2 times or more; give --min-count 1 or a longer"
    ):
        make_vocabulary(VocabularySettings(), {"a": 1, "b": 1}, 1, "a.txt")


# Arrays


def test_arrays_round_trip():
    """The arrays that a checkpoint stores hold all of it, in plain types, whatever characters words have."""
    vocabulary = Vocabulary.from_counts({**COUNTS, "naïve": 7, "no\u00a0break": 1, "\u2028": 1, "😀": 2}, 4)
    arrays = vocabulary.to_arrays()
    assert {name: array.dtype for name, array in arrays.items()} == {"words": np.uint8, "counts": np.int64}
    assert Vocabulary.from_arrays(arrays) == vocabulary


def test_damaged_arrays():
    """Arrays that are no vocabulary are one clear error."""
    arrays = Vocabulary.from_counts(COUNTS, 4).to_arrays()
    words, counts = arrays["words"], arrays["counts"]
    for damaged in (
        {},
        {"words": words[2:]},
        {"words": np.array([255], np.uint8)},
        {"words": words.astype(np.int8)},
        {"words": words.astype(np.float64)},
        {"words": words[None]},
        {"words": words[:0]},
        {"counts": counts[1:]},
        {"counts": counts.astype(np.float64)},
        {"counts": counts.astype(np.int32)},
        {"counts": counts[::-1]},
        {"counts": counts[None]},
        {"counts": counts * -1},
    ):
        with pytest.raises(VocabularyError, match="the stored vocabulary is damaged; make its file again"):
            Vocabulary.from_arrays({**arrays, **damaged} if damaged else {})


def test_equality():
    """Vocabularies are equal when words and counts are."""
    vocabulary = Vocabulary.from_counts(COUNTS, 4)
    assert vocabulary == Vocabulary.from_counts(COUNTS, 4)
    assert vocabulary != Vocabulary.from_counts(COUNTS, 5)
    assert vocabulary != "words"


class CountedWord(str):
    """A word that counts how often one of its kind is hashed or compared."""

    looks = 0

    def __hash__(self):
        """Count, and hash as a plain word."""
        CountedWord.looks += 1
        return super().__hash__()

    def __eq__(self, other):
        """Count, and compare as a plain word."""
        CountedWord.looks += 1
        return super().__eq__(other)


def test_work_grows_no_faster_than_the_vocabulary():
    """Ranking ten times the words takes ten times the looks at a word, few for each; no word is compared with all."""
    looks = []
    for size in (2_000, 20_000):
        counts = {CountedWord(f"word{number}"): 1 + number % 1000 for number in range(size)}
        CountedWord.looks = 0
        vocabulary = Vocabulary.from_counts(counts, 1)
        looks.append(CountedWord.looks)
        assert Vocabulary.from_arrays(vocabulary.to_arrays()) == vocabulary
    assert looks[1] <= 10 * looks[0]
    assert looks[0] <= 20 * 2_000
