import numpy as np
import pytest

from rnnlm.errors import VocabularyError
from rnnlm.vocabulary import SENTENCE_END, UNKNOWN, Vocabulary, VocabularySettings

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
        with pytest.raises(VocabularyError, match="--vocab-size must be at least 3"):
            Vocabulary.from_counts(COUNTS, 4, size=size)
        with pytest.raises(VocabularyError, match="--vocab-size"):
            VocabularySettings(size=size).checked()
    with pytest.raises(VocabularyError, match="no word occurs 6 times or more; give a smaller --min-count"):
        Vocabulary.from_counts(COUNTS, 4, min_count=6)
    with pytest.raises(VocabularyError):
        Vocabulary.from_counts({UNKNOWN: 3}, 1)


def test_encode_and_decode():
    """Words become ids and ids words; a word without an id becomes <unk>, and </s> is 0."""
    vocabulary = Vocabulary.from_counts(COUNTS, 4)
    ids = vocabulary.encode(["the", "dog", UNKNOWN, "cat", SENTENCE_END])
    assert ids.dtype == np.int32
    assert ids.tolist() == [1, 7, 7, 2, 0]
    assert vocabulary.decode(ids) == ["the", UNKNOWN, UNKNOWN, "cat", SENTENCE_END]
    assert vocabulary.encode([]).shape == (0,)


def test_words_must_be_sound():
    """A vocabulary has every word once, a count for each, and the two words that the model needs."""
    for words, counts in [
        (["</s>", "a", "a", "<unk>"], [1, 1, 1, 1]),
        (["</s>", "<unk>"], [1]),
        (["<unk>", "</s>"], [1, 1]),
        (["</s>", "a"], [1, 1]),
        ([], []),
    ]:
        with pytest.raises(VocabularyError, match="a vocabulary must"):
            Vocabulary(words, counts)


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


def test_file_without_words(listing, tmp_path):
    """A vocabulary file that is missing or has no words is an error that names it."""
    for content in ("", "\n", "<unk>\n</s>\n"):
        with pytest.raises(VocabularyError, match=r"words\.txt has no words"):
            VocabularySettings(file=listing(content)).checked()
    with pytest.raises(VocabularyError, match=r"none\.txt cannot be read: No such file"):
        VocabularySettings(file=tmp_path / "none.txt").checked()


def test_settings_choose(listing):
    """The settings make the vocabulary from the text or, where there is one, from the file."""
    assert VocabularySettings(size=3).make(COUNTS, 4).words == [SENTENCE_END, UNKNOWN, "the"]
    settings = VocabularySettings(size=3, file=listing("cat\nonce\nyak\n"))
    assert settings.make(COUNTS, 4).words == [SENTENCE_END, UNKNOWN, "cat", "once", "yak"]
    assert VocabularySettings(size=None).checked() == []
    assert len(VocabularySettings(size=None).make(COUNTS, 4)) == 8


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
    for damaged in ({}, {**arrays, "words": arrays["words"][2:]}, {**arrays, "words": np.array([255], np.uint8)}):
        with pytest.raises(VocabularyError):
            Vocabulary.from_arrays(damaged)
    with pytest.raises(VocabularyError):
        Vocabulary.from_arrays({**arrays, "counts": arrays["counts"][1:]})


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
