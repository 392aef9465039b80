"""Encoded corpora on disk, and their cache."""

import contextlib
import tempfile

import numpy as np
import pytest

from rnnlm import corpus as corpora
from rnnlm import entries
from rnnlm.batches import IGNORED, windows
from rnnlm.corpus import Coverage, encode, encode_once, prepare, reopen, same_text
from rnnlm.errors import SettingsError, TextError, VocabularyError
from rnnlm.text import TextSettings, Tokenizer
from rnnlm.vocabulary import SENTENCE_END, Vocabulary, VocabularySettings

PLAIN = TextSettings(pretokenized=True)
WORDS = VocabularySettings(min_count=1)


@pytest.fixture
def folder(tmp_path):
    """Return the model's folder, which does not exist yet."""
    return tmp_path / "deep" / "model"


@pytest.fixture
def tokenized(monkeypatch):
    """Return a function that says whether a text was tokenized since it was asked before."""
    calls, honest = [], Tokenizer.made_of_blocks

    def blocks(*arguments, **options):
        calls.append(arguments)
        return honest(*arguments, **options)

    def tokenized():
        found = bool(calls)
        calls.clear()
        return found

    monkeypatch.setattr(Tokenizer, "made_of_blocks", blocks)
    return tokenized


@pytest.fixture
def no_tokenizing(monkeypatch):
    """Return a context in which any attempt to tokenize is an error."""

    def refuse(*_, **__):
        raise AssertionError("tokenized once too often")

    @contextlib.contextmanager
    def context():
        with monkeypatch.context() as patch:
            patch.setattr(Tokenizer, "made_of_blocks", refuse)
            patch.setattr(Tokenizer, "learn", refuse)
            yield

    return context


def sentences_of(corpus, vocabulary):
    """Return the sentences of a corpus as words."""
    rows = np.split(np.asarray(corpus.ids), corpus.offsets[1:-1])
    assert all(row[-1] == 0 and np.all(row[:-1] > 0) for row in rows)
    return [" ".join(vocabulary.decode(row[:-1])) for row in rows]


# Encoding


def test_a_text_that_grows_while_it_is_read_is_refused(write, folder, monkeypatch):
    """Its digest and its words would be of two texts; nothing of it is kept."""
    source, make = write("a b\n" * 9), corpora.make_vocabulary

    def grown(*arguments):
        with source.path.open("a") as file:
            file.write("c\n")
        return make(*arguments)

    monkeypatch.setattr(corpora, "make_vocabulary", grown)
    with pytest.raises(TextError, match=r"corpus.txt: has changed while it was read; begin again when it is complete"):
        prepare([source], folder, PLAIN, VocabularySettings())
    monkeypatch.undo()
    assert prepare([source], folder, PLAIN, VocabularySettings()).train.sentences == 10


def test_prepare(write, folder):
    """A text becomes ids, each sentence ended by 0, with offsets and counts of everything."""
    path = write("the cat sat\nthe dog\n\nthe <unk> cat\n")
    prepared = prepare([path], folder, PLAIN, WORDS)
    assert prepared.vocabulary.words == [SENTENCE_END, "the", "cat", "sat", "dog", "<unk>"]
    assert prepared.vocabulary.counts.tolist() == [3, 3, 2, 1, 1, 1]
    train = prepared.train
    assert train.ids.tolist() == [1, 2, 3, 0, 1, 4, 0, 1, 5, 2, 0]
    assert train.offsets.tolist() == [0, 4, 7, 11]
    assert (train.ids.dtype, train.offsets.dtype) == (np.int32, np.int64)
    assert (train.sentences, train.words, train.predictions) == (3, 8, 11)
    assert train.coverage(prepared.vocabulary) == Coverage(3, 8, 5, vocabulary=6, unknown=1, characters=26)
    assert prepared.valid is None
    assert isinstance(train.ids, np.memmap)


def test_prepare_cuts_the_vocabulary(write, folder):
    """Words without an id are encoded as <unk> and counted."""
    path = write("a a a b b c\nd a\n")
    prepared = prepare([path], folder, PLAIN, VocabularySettings(4, 1))
    assert prepared.vocabulary.words == [SENTENCE_END, "a", "b", "<unk>"]
    assert sentences_of(prepared.train, prepared.vocabulary) == ["a a a b b <unk>", "<unk> a"]
    assert (prepared.train.unknown, prepared.train.types, prepared.train.characters) == (2, 4, 8)


def test_unknown_words_are_learned(write, folder):
    """By default a word that occurs once is unknown, unless the training part has `<unk>`: the other does not count."""
    lines = "a a b\nb a\nonce a\n"
    for text_settings in (PLAIN, TextSettings()):
        prepared = prepare([write(lines)], folder, text_settings, VocabularySettings())
        assert prepared.vocabulary.words == [SENTENCE_END, "a", "b", "<unk>"]
        assert prepared.train.unknown == 1
    held_out = prepare([write(lines + "<unk>\n")], folder, PLAIN, VocabularySettings(), valid_fraction=0.1)
    assert "once" not in held_out.vocabulary.ids
    marked = prepare([write(lines + "<unk>\n")], folder, PLAIN, VocabularySettings())
    assert "once" in marked.vocabulary.ids
    for text, message in [("a b\n", "no word occurs 2 times or more; give --min"), ("<unk>\n", "there is no word but")]:
        with pytest.raises(VocabularyError, match=rf"corpus\.txt: {message}"):
            prepare([write(text)], folder, PLAIN, VocabularySettings())
        assert [entry.name for entry in folder.iterdir()] == ["encoded-train"]


def test_prepare_with_a_vocabulary_file(write, folder):
    """A vocabulary file decides which words have an id; what is wrong with it is said before any work is done."""
    listed = write("b\nz\n", "words.txt").path
    prepared = prepare([write("a b a\n")], folder, PLAIN, VocabularySettings(vocab_size=3, vocab=listed))
    assert prepared.vocabulary.words == [SENTENCE_END, "<unk>", "b", "z"]
    assert sentences_of(prepared.train, prepared.vocabulary) == ["<unk> b <unk>"]
    lower, capitals = TextSettings(pretokenized=True, lowercase=True), write("B\nz\n", "words.txt").path
    assert prepare([write("A b a\n")], folder, lower, VocabularySettings(vocab=capitals)).train.unknown == 2
    with pytest.raises(VocabularyError, match="line 1"):
        prepare([write("a")], folder, PLAIN, VocabularySettings(vocab=write("a b c", "words.txt").path))


def test_held_out_part_is_not_counted(write, folder):
    """Whole sentences from the end are held out before the vocabulary is made; none of their words is counted."""
    lines = [f"w{n % 7} x{n}" for n in range(40)]
    path = write("\n".join(lines))
    prepared = prepare([path], folder, PLAIN, VocabularySettings(None, 1), valid_fraction=0.1)
    train, valid, vocabulary = prepared.train, prepared.valid, prepared.vocabulary
    assert (train.sentences, valid.sentences) == (36, 4)
    assert sentences_of(train, vocabulary) == lines[:36]
    assert sentences_of(valid, vocabulary) == [f"{line.split()[0]} <unk>" for line in lines[36:]]
    assert "x36" not in vocabulary.ids
    assert vocabulary.counts[0] == 36
    assert vocabulary.counts[vocabulary.ids["w0"]] == 6
    assert vocabulary.counts[vocabulary.unknown_id] == 0
    assert (train.unknown, train.types, train.words, train.characters) == (0, 43, 72, 36 * 4 + 26)
    assert (valid.unknown, valid.types, valid.words, valid.characters, valid.offsets[0]) == (4, 8, 8, 20, 0)


@pytest.mark.parametrize(
    ("sentences", "fraction", "held_out"), [(2, 0.01, 1), (2, 0.99, 1), (3, 0.5, 2), (100, 0.05, 5)]
)
def test_size_of_the_held_out_part(write, folder, sentences, fraction, held_out):
    """At least one sentence is held out and at least one is left."""
    prepared = prepare([write("a b\n" * sentences)], folder, PLAIN, WORDS, valid_fraction=fraction)
    assert (prepared.train.sentences, prepared.valid.sentences) == (sentences - held_out, held_out)


def test_nothing_to_hold_out(write, folder):
    """A single sentence cannot be divided; the error says what to do."""
    with pytest.raises(SettingsError, match=r"corpus\.txt: there is a single sentence.*--lines.*--valid"):
        prepare([write("a b c\n")], folder, PLAIN, WORDS, valid_fraction=0.05)


def test_several_files_are_one_corpus(write, folder):
    """Files are read in the order given."""
    paths = [write("a\nb", "1"), write("c\n", "2")]
    prepared = prepare(paths[::-1], folder, PLAIN, WORDS)
    assert sentences_of(prepared.train, prepared.vocabulary) == ["c", "a", "b"]


def test_encode_uses_what_the_model_has(write, folder):
    """Another text is cut by the model's tokenizer and numbered by its vocabulary."""
    text = "The cat met Mr. Dog on the road. Mr. Dog was on his way, and Mr. Cow was with the dog. " * 9
    prepared = prepare([write(text)], folder, TextSettings(lowercase=True), WORDS)
    corpus = encode([write("Mr. Cow met a cat. The dog.")], folder, prepared.tokenizer, prepared.vocabulary)
    assert sentences_of(corpus, prepared.vocabulary) == ["mr. cow met <unk> cat .", "the dog ."]
    assert (corpus.unknown, corpus.types, corpus.words) == (1, 8, 9)


def test_blocks_do_not_show(write, folder, monkeypatch):
    """The result does not depend on the sizes in which texts and arrays are handled."""
    rng = np.random.default_rng(1)
    text = "\n".join(" ".join(f"w{n}" for n in rng.integers(0, 50, rng.integers(1, 12))) for _ in range(500))
    path = write(text)
    whole = prepare([path], folder, PLAIN, VocabularySettings(30), valid_fraction=0.2)
    monkeypatch.setattr(corpora, "BLOCK", 17)
    monkeypatch.setattr(entries, "BLOCK", 17)
    monkeypatch.setattr("rnnlm.sources.CHUNK", 100)
    monkeypatch.setattr("rnnlm.sources.CHUNK_LIMIT", 200)
    monkeypatch.setattr("rnnlm.sources.READ_BLOCK", 64)
    pieces = prepare([path], folder / "other", PLAIN, VocabularySettings(30), valid_fraction=0.2)
    assert pieces.vocabulary == whole.vocabulary
    for one, other in [(whole.train, pieces.train), (whole.valid, pieces.valid)]:
        assert np.array_equal(one.ids, other.ids)
        assert np.array_equal(one.offsets, other.offsets)
        assert (one.unknown, one.types) == (other.unknown, other.types)
    assert sentences_of(whole.train, whole.vocabulary)[0].count(" ") == text.split("\n")[0].count(" ")


def test_stages_are_told(write, folder):
    """Each stage of the work has a name and a size, and its progress adds up to it."""
    told = {}

    @contextlib.contextmanager
    def stage(title, size):
        done = []
        yield done.append
        told[title] = (size, sum(done))

    path = write("The cat sat. It slept.\n" * 50)
    prepare([path], folder, TextSettings(), WORDS, stage=stage)
    assert list(told) == ["checking the text", "learning where sentences end", "tokenizing", "numbering words"]
    assert all(size == done > 0 for size, done in told.values())


# The cache


def test_second_run_tokenizes_nothing(write, folder, no_tokenizing):
    """The same text and settings are never tokenized twice."""
    path = write("The cat sat. It slept.\n\nMr. Dog ran.\n" * 9)
    first = prepare([path], folder, TextSettings(), WORDS, valid_fraction=0.1)
    valid = encode([path], folder, first.tokenizer, first.vocabulary)
    elsewhere = write(path.path.read_text(), "same.txt")
    with no_tokenizing():
        second = prepare([elsewhere], folder, TextSettings(), WORDS, valid_fraction=0.1)
        again = encode([path], folder, second.tokenizer, second.vocabulary)
    assert second.tokenizer == first.tokenizer
    assert second.vocabulary == first.vocabulary
    for one, other in [(first.train, second.train), (first.valid, second.valid), (valid, again)]:
        assert np.array_equal(one.ids, other.ids)
        assert np.array_equal(one.offsets, other.offsets)
        assert (one.unknown, one.types) == (other.unknown, other.types)


def test_changes_are_seen(write, folder, tokenized):
    """A changed text or setting is encoded anew, in the place of the old."""
    path = write("the cat\nThe dog\n")
    variants = [
        ([path], PLAIN, WORDS, 0.0),
        ([path, path], PLAIN, WORDS, 0.0),
        ([path], TextSettings(pretokenized=True, lowercase=True), WORDS, 0.0),
        ([path], TextSettings(), WORDS, 0.0),
        ([path], PLAIN, VocabularySettings(4, 1), 0.0),
        ([path], PLAIN, VocabularySettings(None, 1), 0.0),
        ([path], PLAIN, VocabularySettings(vocab_size=4, vocab=write("the\n", "words.txt").path), 0.0),
        ([path], PLAIN, VocabularySettings(vocab_size=4, vocab=write("dog\n", "others.txt").path), 0.0),
        ([path], PLAIN, WORDS, 0.5),
        ([write("the cat\nthe dog\n", "changed.txt")], PLAIN, WORDS, 0.0),
    ]
    for paths, text_settings, words, fraction in variants:
        prepare(paths, folder, text_settings, words, valid_fraction=fraction)
        assert tokenized()
        prepare(paths, folder, text_settings, words, valid_fraction=fraction)
        assert not tokenized()
        assert [entry.name for entry in folder.iterdir()] == ["encoded-train"]
    prepare([path], folder, PLAIN, WORDS)
    assert tokenized()


def test_encoded_text_depends_on_the_model(write, folder, no_tokenizing):
    """A text that was encoded for one vocabulary or tokenizer is encoded anew for another."""
    path = write("the cat\n")
    tokenizer, small = Tokenizer(PLAIN), Vocabulary(["</s>", "cat", "<unk>"], [1, 1, 0])
    large = Vocabulary(["</s>", "the", "cat", "<unk>"], [1, 1, 1, 0])
    assert encode([path], folder, tokenizer, small).ids.tolist() == [2, 1, 0]
    with no_tokenizing():
        assert encode([path], folder, tokenizer, small).unknown == 1
    lower = Tokenizer(TextSettings(pretokenized=True, lowercase=True))
    with no_tokenizing(), pytest.raises(AssertionError, match="once too often"):
        encode([path], folder, lower, small)
    assert encode([path], folder, tokenizer, large).ids.tolist() == [1, 2, 0]


def test_known_words_are_used_again(write, folder, no_tokenizing):
    """A training text can be encoded with what a model has, its end held out; nothing is learned of it."""
    text = "The cat met Mr. Dog on the road. Mr. Dog was on his way, and Mr. Cow was with the dog.\n\n" * 9
    model = prepare([write(text)], folder, TextSettings(lowercase=True), WORDS)
    known, other = (model.tokenizer, model.vocabulary), write("Mr. Cow met a cat. The dog. Mr. Hen was with the dog.")
    tuned = prepare([other], folder, PLAIN, VocabularySettings(3), known=known, valid_fraction=0.3)
    assert (tuned.tokenizer, tuned.vocabulary) == known
    assert sentences_of(tuned.train, tuned.vocabulary) == ["mr. cow met <unk> cat .", "the dog ."]
    assert sentences_of(tuned.valid, tuned.vocabulary) == ["mr. <unk> was with the dog ."]
    assert (tuned.train.unknown, tuned.train.types, tuned.valid.unknown, tuned.valid.types) == (1, 8, 1, 7)
    with no_tokenizing():
        again = prepare([other], folder, PLAIN, VocabularySettings(3), known=known, valid_fraction=0.3)
        train, valid = reopen(folder, tuned.train.key, tuned.valid.key, model.vocabulary)
    assert same_text(again.train, tuned.train)
    assert same_text(train, tuned.train)
    assert same_text(valid, tuned.valid)
    assert reopen(folder, tuned.train.key, tuned.valid.key) is None
    words, cow = model.vocabulary.words, model.vocabulary.ids["cow"]
    fewer = Vocabulary(words[:cow] + words[cow + 1 :], np.delete(model.vocabulary.counts, cow))
    assert reopen(folder, tuned.train.key, tuned.valid.key, fewer) is None
    whole = prepare([other], folder, PLAIN, WORDS, known=known)
    assert (whole.train.sentences, whole.valid) == (3, None)
    assert encode([other], folder, *known).key != whole.train.key  # a model tells by them whether it holds out
    assert prepare([other], folder, PLAIN, WORDS, known=(known[0], fewer)).train.unknown > whole.train.unknown


def test_reopen_without_the_text(write, folder):
    """What was encoded is found by its keys alone, so that training can go on when the text was standard input."""
    path, other = write("the cat\nthe dog\nthe end\n"), write("a dog\n", "valid.txt")
    ready = prepare([path], folder, PLAIN, WORDS)
    valid = encode([other], folder, ready.tokenizer, ready.vocabulary)
    path.path.unlink()
    train_again, valid_again = reopen(folder, ready.train.key, valid.key)
    assert np.array_equal(train_again.ids, ready.train.ids)
    assert np.array_equal(valid_again.ids, valid.ids)
    assert ready.train.key != valid.key
    assert reopen(folder, ready.train.key, ready.train.key) is None  # nothing is held out
    assert reopen(folder, ready.train.key, valid.key, ready.vocabulary) is not None
    assert reopen(folder, ready.train.key, valid.key, Vocabulary(["</s>", "<unk>"], [1, 0])) is None
    assert reopen(folder, ready.train.key, "other") is reopen(folder, "other", valid.key) is None
    path.path.write_text("the cat\nthe dog\nthe end\n")
    held = prepare([path], folder, PLAIN, WORDS, valid_fraction=0.3)
    train_again, valid_again = reopen(folder, held.train.key, held.valid.key)
    assert (train_again.sentences, valid_again.sentences) == (2, 1)
    (folder / "encoded-train" / "ids").unlink()
    assert reopen(folder, held.train.key, held.valid.key) is None


@pytest.mark.parametrize(
    "step", [(corpora, "_counts"), (corpora, "_renumber"), (entries, "write_vocabulary"), (entries, "finish")]
)
def test_interrupted_encoding(write, folder, monkeypatch, tokenized, step):
    """An interrupted run leaves nothing that could be taken for an encoded corpus."""
    path, old = write("the cat\nthe dog\n"), write("old\n", "old.txt")
    prepare([old], folder, PLAIN, WORDS)
    with monkeypatch.context() as patch:
        patch.setattr(*step, interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare([path], folder, PLAIN, WORDS)
    assert [entry.name for entry in folder.iterdir()] == ["encoded-train"]
    assert tokenized()
    prepare([old], folder, PLAIN, WORDS)
    assert not tokenized()


def interrupt(*_, **__):
    """Stand in for a step during which Ctrl-C is pressed."""
    raise KeyboardInterrupt


def test_errors_leave_nothing(write, folder):
    """A text with an error in it is not encoded by half."""
    with pytest.raises(TextError, match="line 2"):
        prepare([write("a b\n<s>\n")], folder, PLAIN, WORDS)
    assert list(folder.iterdir()) == []


def test_processes_that_cannot_be_started(write, folder, monkeypatch):
    """Where the system has no room for processes, the error says to do without them, and nothing is left."""

    def refuse(_process):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("rnnlm.text.PROCESSES_PAY", 0)
    monkeypatch.setattr("multiprocessing.context.SpawnProcess.start", refuse)
    path = write("The cat sat. The cat ran.\n")
    with pytest.raises(SettingsError, match=r"\(resource temporarily unavailable\); give --threads 1$"):
        prepare([path], folder, TextSettings(), WORDS, processes=2)
    assert list(folder.iterdir()) == []
    assert prepare([path], folder, TextSettings(), WORDS, processes=1).train.words == 8


@pytest.mark.parametrize("settings", [PLAIN, TextSettings(lines=True)])
def test_processes_change_no_byte(write, folder, monkeypatch, settings):
    """Whatever processes number the words, an entry has the same bytes: words that are met first have low numbers."""
    monkeypatch.setattr("rnnlm.text.PROCESSES_PAY", 0)
    monkeypatch.setattr("rnnlm.text.PLAIN_PROCESSES_PAY", 0)
    monkeypatch.setattr("rnnlm.sources.CHUNK", 2_000)
    monkeypatch.setattr("rnnlm.sources.CHUNK_LIMIT", 4_000)
    words = (np.random.default_rng(1).pareto(0.7, 30_000) * 9).astype(int).clip(0, 10**6)
    path = write("".join(f"w{word}{' ' if place % 7 else chr(10)}" for place, word in enumerate(words)))
    found = []
    for processes in (1, 3):
        place = folder.with_name(f"of-{processes}")
        prepare([path], place, settings, WORDS, valid_fraction=0.2, processes=processes)
        found.append({file.name: file.read_bytes() for file in (place / "encoded-train").iterdir()})
    assert found[0] == found[1]
    assert len(found[0]["words"]) > 5_000


def test_unwritable_folder(write, tmp_path):
    """A folder that cannot be made is an error that names it."""
    path = write("a b\n")
    with pytest.raises(SettingsError, match=r"corpus\.txt/model: cannot be written \(not a directory\); make room"):
        prepare([path], path.path / "model", PLAIN, WORDS)


def test_same_text(write, folder, monkeypatch):
    """Two texts are the same where all their sentences are, whatever their files are called."""
    ready = prepare([write("the cat\nthe dog\n")], folder, PLAIN, WORDS)

    def read(content):
        return encode_once([write(content, "other.txt")], ready.tokenizer, ready.vocabulary)

    for block in (2**20, 2):
        monkeypatch.setattr(corpora, "BLOCK", block)
        assert same_text(ready.train, read(" the cat\n\nthe   dog"))
        for other in ("the cat\n", "the cat\nthe dog\nthe dog\n", "the cat\nthe cat\n", "the\ncat the dog\n"):
            assert not same_text(ready.train, read(other))


def test_windows_of_a_held_out_part(write, folder):
    """Windows of a part in the middle of the file see nothing of the other part."""
    path = write("\n".join(f"a{n} b{n}" for n in range(20)))
    prepared = prepare([path], folder, PLAIN, VocabularySettings(None, 1), valid_fraction=0.25)
    for part, count in ((prepared.train, 15), (prepared.valid, 5)):
        pieces = list(windows(part, 2, 3, np.random.default_rng(1)))
        assert pieces[0].inputs[0].tolist() == [0, 0]
        assert sum(np.count_nonzero(piece.targets != IGNORED) for piece in pieces) == count * 3 == part.predictions


def test_coverage():
    """Coverage is the share of words that have an id; whether <unk> is ever seen decides about a warning."""
    coverage = Coverage(sentences=2, words=10, types=6, vocabulary=5, unknown=1)
    assert coverage.share == pytest.approx(0.9)


def test_encoding_once_is_encoding(write, folder, tmp_path, monkeypatch):
    """A text encoded for one use is what the cache would hold, and leaves no file behind."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    text = write("the cat\nthe dog\na cat\n")
    prepared = prepare([write("the cat\n", "other.txt")], folder, PLAIN, WORDS)
    kept = encode([text], folder, prepared.tokenizer, prepared.vocabulary)
    once = encode_once([text], prepared.tokenizer, prepared.vocabulary)
    assert list((tmp_path / "temporary").iterdir()) == []
    assert np.array_equal(once.ids, kept.ids)
    assert np.array_equal(once.offsets, kept.offsets)
    assert (once.unknown, once.types) == (kept.unknown, kept.types) == (2, 4)
