"""Models of other programs: read whole or refused in a sentence, and equal to what those programs compute."""

import itertools
import json
import math
import os
import random
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

import rnnlm
from rnnlm.errors import RnnlmError, SettingsError
from rnnlm.foreign import read_foreign
from test_cli import SENTENCE, run  # noqa: F401 -- a fixture

WORDS = ["</s>", "the", "cat", "sees", "dog", "a"]
CLASSES = [0, 0, 1, 1, 2, 2]
HIDDEN = 3


def weights(seed=1):
    """Return a network of Mikolov's kind: the last state, inputs (H, V + H) and outputs (V + C, H)."""
    generator, V, C = np.random.default_rng(seed), len(WORDS), max(CLASSES) + 1
    shapes = ((HIDDEN,), (HIDDEN, V + HIDDEN), (V + C, HIDDEN))
    state, inputs, outputs = (generator.normal(size=shape).round(4) for shape in shapes)
    return np.abs(state % 1).round(4), inputs, outputs


def mikolov(binary=False, independent=False, words=WORDS, classes=CLASSES, **changed):
    """Return a file of Mikolov's rnnlm, as its saveNet writes it."""
    V, C = len(words), max(classes) + 1
    fields = {
        "version": 10,
        "file format": int(binary),
        "training data file": "train: it.txt",
        "validation data file": "valid.txt",
        "last probability of validation data": -12.5,
        "input layer size": V + HIDDEN,
        "hidden layer size": HIDDEN,
        "compression layer size": 0,
        "output layer size": V + C,
        "direct connections": 0,
        "direct order": 3,
        "vocabulary size": V,
        "class size": C,
        "old classes": 0,
        "independent sentences mode": int(independent),
        "learning rate decrease": 1,
    }
    fields |= {name.replace("_", " "): value for name, value in changed.items()}
    out = "".join(f"{name}: {value}\n" for name, value in fields.items()).encode() + b"\n\nVocabulary:\n"
    for rank, (word, own) in enumerate(zip(words, classes, strict=True)):
        out += f"{rank:6}\t{90 - 10 * rank:10}\t{word}\t{own}\n".encode()
    if binary:
        return out + b"".join(array.astype("<f4").tobytes() for array in weights())
    labels = ("\nHidden layer activation", "\nWeights 0->1", "\n\nWeights 1->2")
    for label, array in zip(labels, weights(), strict=True):
        out += f"{label}:\n".encode() + "".join(f"{number:.4f}\n" for number in array.flat).encode()
    return out + b"\nDirect connections:\n"


def his_probabilities(sentences, independent, exp=np.exp):
    """Compute what his program computes, one word after the other; a word that it does not know has none."""
    state, inputs, outputs = weights()
    V, classes, last, found = len(WORDS), np.array(CLASSES), 0, []
    state = np.ones(HIDDEN) if independent else state
    for word in (word for sentence in sentences for word in (*sentence.split(), "</s>")):
        read = inputs[:, last] if last is not None else 0
        state = 1 / (1 + exp(-(inputs[:, V:] @ state + read)))
        last = WORDS.index(word) if word in WORDS else None
        if last is None:
            found.append(None)
            continue
        own = np.flatnonzero(classes == classes[last])
        of_classes, of_words = exp(outputs[V:] @ state), exp(outputs[own] @ state)
        p_class = of_classes[classes[last]] / of_classes.sum()
        found.append(p_class * of_words[own.tolist().index(last)] / of_words.sum())
        if independent and last == 0:
            state = np.ones(HIDDEN)
    return found


SENTENCES = ["the cat sees a dog", "zebra sees the zebra", "dog", "the the"]


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("binary", [False, True])
def test_mikolovs_probabilities_are_ours(run, tmp_path, binary, independent):  # noqa: F811
    """Each word that he knows has his probability, the first ones too; one that he does not has next to none."""
    (tmp_path / "his.model").write_bytes(mikolov(binary, independent))
    code, _, err = run("import", "his.model")
    assert code == 0, err
    found = rnnlm.load().surprisals("\n".join(SENTENCES))
    expected = his_probabilities(SENTENCES, independent)
    for (word, bits), p in zip(found, expected, strict=True):
        if p is None:
            assert bits > 100, word
        else:
            assert bits == pytest.approx(-math.log2(p), abs=1e-5), word
    (tmp_path / "text.txt").write_text("\n".join(SENTENCES) + "\n")
    known = [p for p in expected if p is not None]
    score = json.loads(run("evaluate", "text.txt", "--json")[1])
    perplexity = math.exp(-sum(map(math.log, known)) / len(known))
    assert score["perplexity_excluding_unknown"] == pytest.approx(perplexity, rel=1e-5)


def fast(x):
    """Compute his approximate exponential: the bits of a float32 are about its logarithm."""
    bits = (1 << 23) * (np.float32(1.442695040) * np.asarray(x, np.float32) + np.float32(126.94269504))
    return bits.astype(np.uint32).view(np.float32).astype(float)


def test_his_approximate_exponential_explains_what_is_left():
    """Where his program is built with the exponential above, its probabilities are near those here, and not equal."""
    exact, near = (his_probabilities(SENTENCES, False, exp) for exp in (np.exp, fast))
    ratios = [b / a for a, b in zip(exact, near, strict=True) if a is not None]
    assert 1e-4 < max(abs(math.log(ratio)) for ratio in ratios) < 0.1


def softmax(logits):
    """Compute a softmax with his exponential."""
    e = fast(logits - logits.max())
    return e / e.sum()


MIKOLOV = Path(os.environ.get("RNNLM_MIKOLOV", ""))


@pytest.mark.skipif(
    not (os.environ.get("RNNLM_MIKOLOV") and (MIKOLOV / "a.model").is_file()),
    reason="set RNNLM_MIKOLOV to a folder with a.model, six-lines.txt and a.test-debug2.txt, what -debug 2 prints",
)
def test_a_model_of_his_own_program():
    """With his exponential our parameters give what his program has printed, to 1e-5; exactly, within 1%."""
    lm = rnnlm.Model(read_foreign(MIKOLOV / "a.model"))
    rows = (row.split("\t") for row in (MIKOLOV / "a.test-debug2.txt").read_text().splitlines()[5:])
    printed = np.array([float(row[1]) for row in rows if len(row) > 2])
    text = (MIKOLOV / "six-lines.txt").read_text()
    words = [word for line in text.splitlines() for word in (*line.split(), "</s>")]
    model, ids, J = lm.saved.model, lm.saved.vocabulary.encode(words), len(lm.saved.model.settings.cutoffs)
    U, W, V = (model.parameters[name].astype(float) for name in ("U", "W1", "V"))
    s, edges, found = model.first[0, 0], np.array([*model.settings.cutoffs, len(U) - 1]), []  # not <unk>, the last
    for word, target in zip([0, *ids], ids, strict=False):
        s = 1 / (1 + fast(-(W @ s + U[word])))
        tail = np.searchsorted(edges, target, side="right") - 1
        if tail == J:
            found.append(0)  # a word that he does not know
        else:
            own = V[J + edges[tail] : J + edges[tail + 1]]
            found.append(softmax(V[:J] @ s)[tail] * softmax(own @ s)[target - edges[tail]])
    known = printed > 0
    assert np.array_equal(np.array(found) > 0, known)
    assert np.abs(found - printed).max() < 1e-5
    assert np.abs(np.log(np.array(found)[known] / printed[known])).max() < 2e-5
    exact = np.array([bits for _, bits in lm.surprisals(text)])[known] * math.log(2)
    assert exact.mean() == pytest.approx(-np.log(printed[known]).mean(), abs=0.01)


def test_an_imported_model_serves_every_command(run, tmp_path):  # noqa: F811
    """It is described, continued, exported, checked, and trained on."""
    (tmp_path / "his.model").write_bytes(mikolov())
    (tmp_path / "text.txt").write_text("the cat sees a dog\n" * 40)
    assert run("import", "his.model")[0] == 0
    code, out, _ = run("info")
    assert code == 0
    assert "in 3 clusters of 2, 2 and 3 words" in out
    assert "imported from" in out
    assert "train: it.txt" in out
    assert run("curve", "model")[::2] == (1, "Error: model: rnnlm has not trained it; leave it out.\n")
    assert json.loads(run("info", "--json")[1])["model"]["cutoffs"] == [0, 2, 4]
    assert run("generate", "--seed", 1, "--threads", 1)[0] == 0
    report = json.loads(run("report", "text.txt", "--json")[1])
    assert report["command"] == ""  # no training of ours has made it
    code, out, err = run("gradcheck", "--model", "model", "--directions", 2)
    assert code == 0, out + err
    code, _, err = run("train", "text.txt", "--from", "model", "--model", "on", "--epochs", 1, "--threads", 1)
    assert code == 0, err
    before, after = (json.loads(run("evaluate", "text.txt", "--json", "--model", name)[1]) for name in ("model", "on"))
    assert after["perplexity"] < before["perplexity"]


def test_a_model_is_never_replaced_unasked(run, tmp_path):  # noqa: F811
    """A folder that holds a model is refused, and --overwrite replaces all of it."""
    (tmp_path / "his.model").write_bytes(mikolov())
    assert run("import", "his.model")[0] == 0
    code, _, err = run("import", "his.model")
    assert code == 1
    assert SENTENCE.fullmatch(err)
    (tmp_path / "model" / "history.jsonl").write_text("{}")
    assert run("import", "his.model", "--overwrite")[0] == 0
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["best.npz"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (mikolov(direct_connections=5000), "5,000 direct connections, .* without -direct$"),
        (mikolov(compression_layer_size=8), "a compression layer of 8 units"),
        (mikolov(version=11), "'version' is '11'"),
        (mikolov(hidden_layer_size=4), "'input layer size' is '9'"),
        (mikolov(vocabulary_size=10**9, input_layer_size=10**9 + 3, output_layer_size=10**9 + 3), "too short"),
        (mikolov(words=["</s>", "the", "<s>", "b", "c", "d"]), "line 22: <s> is never a word"),
        (mikolov(words=["</s>", "the", "the", "b", "c", "d"]), "line 22 is out of order"),
        (mikolov(classes=[0, 0, 2, 2, 3, 3]), "1 of its 4 classes have no words"),
        (mikolov(classes=[0, 1, 0, 1, 2, 2]), "classes are out of order"),
        (mikolov().replace(b"cat", b"c\xe4t"), r"line 22: .* not valid UTF-8.*--encoding"),
        (mikolov()[:-60], "it ends before line"),
        (mikolov() + b"0.5\n", "it goes on after line"),
        (mikolov().replace(b"independent sentences mode", b"x"), "does not say its 'independent sentences mode'"),
        (mikolov(True)[:-1], "have not the bytes"),
        (mikolov(True) + b"\0", "have not the bytes"),
        (mikolov().replace(b"Weights 1->2:\n", b"Weights 1->2:\nx"), "is not a number"),
        (mikolov().replace(b"Weights 1->2:\n", b"Weights 1->2:\nnan\n", 1), "line|finite"),
        (b"version: 10\n" + b"a: b\n" * 1000, "no vocabulary"),
        (b"version: 10\n" + b"a" * 10**6, "has more than"),
        (b"", "no model of Mikolov's"),
        (b"PK\x03\x04" + bytes(100), "damaged|--words"),
    ],
)
def test_what_is_no_such_model_is_named_in_one_sentence(run, tmp_path, content, message):  # noqa: F811
    """What the file has is said, with its line where there is one, and nothing is left behind."""
    path = tmp_path / "his.model"
    path.write_bytes(content)
    with pytest.raises(RnnlmError, match=message) as caught:
        read_foreign(path)
    assert str(caught.value).startswith(str(path))
    code, out, err = run("import", "his.model")
    assert (code, out) == (2 if isinstance(caught.value, SettingsError) else 1, "")
    assert code == 2 or SENTENCE.fullmatch(err)
    assert not (tmp_path / "model").exists()


def test_the_encoding_is_of_words_and_names(tmp_path):
    """Sizes are read whatever the encoding is; the words, and the names of the texts, are in it."""
    path = tmp_path / "his.model"
    path.write_bytes(mikolov(training_data_file="été").replace(b"cat", "chaß".encode()).decode().encode("latin-1"))
    saved = read_foreign(path, encoding="latin-1")
    assert saved.vocabulary.words[2] == "chaß"
    assert saved.origin.settings.corpus == ("été",)
    with pytest.raises(RnnlmError, match="the word is not valid UTF-16"):
        read_foreign(path, encoding="utf-16")


def test_a_character_of_no_word_names_the_encoding(tmp_path):
    """Typographic quotes of windows-1252 are control characters in latin-1."""
    path = tmp_path / "his.model"
    path.write_bytes(mikolov().replace(b"cat", b"c\x94t"))
    with pytest.raises(RnnlmError, match=r"his.model, line \d+: U\+0094 is a control character; name the encoding"):
        read_foreign(path, encoding="latin-1")
    assert "c”t" in read_foreign(path, encoding="cp1252").vocabulary.words


def test_weights_that_do_not_fit_into_memory(tmp_path, monkeypatch):
    """The file is named, and not options that this command does not have."""
    (tmp_path / "his.model").write_bytes(mikolov())

    def too_much(*_):
        raise MemoryError

    monkeypatch.setattr("rnnlm.foreign._float32", too_much)
    with pytest.raises(RnnlmError, match="do not fit into memory"):
        read_foreign(tmp_path / "his.model")


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_model_is_refused_or_read(tmp_path, seed):
    """Bytes changed, cut out or put in, of each kind of file: a sentence, or a model of finite numbers."""
    choice = random.Random(seed)
    tutorial(tmp_path)
    sound = [mikolov(), mikolov(True), (tmp_path / "model.npz").read_bytes()]
    for number in range(60):
        data = bytearray(sound[number % 3])
        for _ in range(choice.randint(1, 4)):
            at, size = choice.randrange(len(data)), choice.choice([1, 1, 4, 50])
            data[at : at + choice.choice([0, size])] = choice.choice(
                [b"", b"9" * size, choice.randbytes(size), b"\n", b"\t"]
            )
        (tmp_path / "damaged").write_bytes(data)
        try:
            saved = read_foreign(tmp_path / "damaged", tmp_path / "words.txt" if number % 3 == 2 else None)
        except RnnlmError as error:
            assert str(error).startswith(str(tmp_path))  # noqa: PT017 -- most are refused
            assert "\n" not in str(error)  # noqa: PT017
        else:
            assert all(np.isfinite(array).all() for array in saved.model.parameters.values())


TUTORIAL_WORDS = ["SENTENCE_START", "SENTENCE_END", "the", "dog", "barks", "UNKNOWN_TOKEN"]


def tutorial(folder, rows=8, kind=np.float32):
    """Write a network of the tutorial's, with two rows that no word has, and return its U, V and W."""
    generator = np.random.default_rng(3)
    U, V, W = (generator.normal(size=shape).astype(kind) for shape in ((4, rows), (rows, 4), (4, 4)))
    np.savez(folder / "model.npz", U=U, V=V, W=W)
    (folder / "words.txt").write_text("\n".join(TUTORIAL_WORDS) + "\n")
    return U, V, W


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_the_tutorials_probabilities_are_ours(run, tmp_path, kind):  # noqa: F811
    """Sentences begin after SENTENCE_START and end in SENTENCE_END; words are folded, unknown ones have a row."""
    U, V, W = tutorial(tmp_path, kind=kind)
    code, _, err = run("import", "model.npz", "--words", "words.txt")
    assert code == 0, err
    shown = run("info")[1]
    assert "files             unknown\n" in shown
    assert not re.search("training words|most frequent|  sentences +[0-9]|  words +[0-9]+, found", shown)
    found, expected = rnnlm.load().surprisals("The dog barks\nzebra"), []
    for sentence in ([0, 2, 3, 4, 1], [0, 5, 1]):
        s = np.zeros(4)
        for word, target in itertools.pairwise(sentence):
            s = np.tanh(U[:, word] + W @ s)
            e = np.exp(V @ s)
            expected.append(-math.log2(e[target] / e.sum()))
    assert [bits for _, bits in found] == pytest.approx(expected, abs=1e-5)


def test_arrays_may_lie_by_columns_and_texts_be_in_another_encoding(tmp_path):
    """U.T, say, as numpy stores it; the encoding is that of the texts to come. Compressed arrays are refused."""
    tutorial(tmp_path)
    rows = read_foreign(tmp_path / "model.npz", tmp_path / "words.txt")
    given = dict(np.load(tmp_path / "model.npz"))
    np.savez(tmp_path / "model.npz", **{name: np.asfortranarray(array) for name, array in given.items()})
    saved = read_foreign(tmp_path / "model.npz", tmp_path / "words.txt", encoding="latin-1")
    for name, array in saved.model.parameters.items():
        assert np.array_equal(array, rows.model.parameters[name])
    assert saved.tokenizer.settings.encoding == "latin-1"
    np.savez_compressed(tmp_path / "model.npz", **given)
    with pytest.raises(RnnlmError, match="its entry U is compressed, as"):
        read_foreign(tmp_path / "model.npz", tmp_path / "words.txt")


@pytest.mark.parametrize(
    ("arrays", "words", "message"),
    [
        ({"U": (4, 8), "V": (8, 4), "W": (4, 4)}, TUTORIAL_WORDS[1:], "SENTENCE_START is not there"),
        ({"U": (4, 8), "V": (8, 4), "W": (4, 4)}, [*TUTORIAL_WORDS, "a", "b", "c"], "has 9 words"),
        ({"U": (4, 8), "V": (8, 4), "W": (4, 5)}, TUTORIAL_WORDS, "W is float64 of shape"),
        ({"U": (8,), "V": (8, 4), "W": (4, 5)}, TUTORIAL_WORDS, "no matrix"),
        ({"U": (4, 8), "V": (8, 4)}, TUTORIAL_WORDS, "no arrays U, V and W"),
        ({"E": (4, 8), "U": (6, 4, 4), "V": (8, 4), "W": (6, 4, 4)}, TUTORIAL_WORDS, "two layers of GRUs"),
    ],
)
def test_what_is_no_network_of_the_tutorial_is_said(tmp_path, arrays, words, message):
    """Shapes, words and cells that do not fit are named."""
    np.savez(tmp_path / "model.npz", **{name: np.ones(shape) for name, shape in arrays.items()})
    (tmp_path / "words.txt").write_text("\n".join(words))
    with pytest.raises(RnnlmError, match=message):
        read_foreign(tmp_path / "model.npz", tmp_path / "words.txt")


def test_a_size_that_an_array_claims_is_not_believed(tmp_path):
    """An array whose header claims more than the file has is refused before there is memory for it."""
    tutorial(tmp_path)
    claim = np.lib.format
    with zipfile.ZipFile(tmp_path / "big.npz", "w") as archive:
        for name, shape in (("U", (10**5, 10**7)), ("V", (10**7, 10**5)), ("W", (10**5, 10**5))):
            with archive.open(f"{name}.npy", "w") as entry:
                claim.write_array_header_1_0(entry, {"descr": "<f4", "fortran_order": False, "shape": shape})
    with pytest.raises(RnnlmError, match="not its size"):
        read_foreign(tmp_path / "big.npz", tmp_path / "words.txt")


def test_each_sentence_by_itself_begins_as_a_text_does(run, tmp_path):  # noqa: F811
    """Whatever reads a sentence by itself begins in the state that his file has: score, evaluate, and a cache."""
    (tmp_path / "his.model").write_bytes(mikolov())
    (tmp_path / "text.txt").write_text("".join(f"{sentence}\n" for sentence in SENTENCES))
    assert run("import", "his.model")[0] == 0
    lm = rnnlm.load("model")
    alone = np.array([sentence.total for sentence in lm.score(SENTENCES, pretokenized=True)])
    score = lm.perplexity("text.txt", pretokenized=True, carry_state=False)
    np.testing.assert_allclose(score.log_likelihood, alone.sum(), rtol=1e-6)
    assert abs(lm.perplexity("text.txt", pretokenized=True).log_likelihood / alone.sum() - 1) > 1e-4  # carried: another
    known = [0, 2, 3]  # of an unknown word the cache expects more than the model does
    cached = lm.score([SENTENCES[place] for place in known], pretokenized=True, cache=5, cache_weight=1e-12)
    np.testing.assert_allclose([sentence.total for sentence in cached], alone[known], rtol=1e-6)


def test_exported_files_say_what_they_are(run, tmp_path):  # noqa: F811
    """Plain arrays with a note of each, words with counts that a training reads; nothing there is replaced."""
    (tmp_path / "his.model").write_bytes(mikolov())
    assert run("import", "his.model")[0] == 0
    assert run("export", "--vocab", "words.txt", "--npz", "out.npz") == (0, "", "")
    arrays = dict(np.load("out.npz"))
    assert all(f"{name} " in str(arrays["note"]) for name in ("U", "W1", "b1", "V", "c", "first"))
    assert json.loads(str(arrays["settings"]))["cell"] == "sigmoid"
    assert arrays["words"].tobytes().decode().split("\n") == [*WORDS, "<unk>"]
    assert np.array_equal(arrays["U"], rnnlm.load().saved.model.parameters["U"])
    (tmp_path / "text.txt").write_text("the cat sees a dog\n" * 20)
    small = ("--pretokenized", "--hidden", 2, "--epochs", 1, "--threads", 1)
    code, _, err = run("train", "text.txt", "--vocab", "words.txt", "--model", "new", *small)
    assert code == 0, err
    code, _, err = run("export", "--vocab", "words.txt")
    assert code == 1
    assert SENTENCE.fullmatch(err)
    assert run("export")[0] == 2


def test_two_files_are_exported_or_none(run, tmp_path, monkeypatch):  # noqa: F811
    """Where one of them is in the way, or an interrupt comes, nothing is written."""
    (tmp_path / "his.model").write_bytes(mikolov())
    assert run("import", "his.model")[0] == 0
    (tmp_path / "there").touch()
    before = sorted(tmp_path.iterdir())
    code, _, err = run("export", "--vocab", "words.txt", "--npz", "there")
    assert code == 1
    assert SENTENCE.fullmatch(err)
    assert run("export", "--vocab", "new", "--npz", "new")[0] == 2
    code, _, err = run("export", "--vocab", "words.txt", "--npz", "missing/new")
    assert (code, "there is no folder missing" in err) == (1, True)

    def cut_short(*_, **__):
        try:
            raise KeyboardInterrupt
        finally:
            raise ValueError("what zipfile says of an entry that was being written")

    monkeypatch.setattr(np, "savez", cut_short)
    assert run("export", "--npz", "new") == (130, "", "Interrupted.\n")
    assert sorted(tmp_path.iterdir()) == before
