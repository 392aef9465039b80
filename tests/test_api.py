"""What `import rnnlm` offers, used as its page says; figures held against those of the parts below."""

import math
import random
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import threadpoolctl

import rnnlm
from rnnlm.errors import SettingsError
from rnnlm.model import SENTENCE_END, Workspace
from rnnlm.run import working

PAGE = Path(__file__).parent.parent / "docs/python.md"


def text(count, seed):
    """Return so many small sentences, a line each."""
    choose = random.Random(seed).choice
    nouns, verbs = ("cat", "dog", "bird", "old man"), ("sleeps", "sings", "sees it", "is here")
    return "".join(f"{choose(('The', 'the', 'a'))} {choose(nouns)} {choose(verbs)}.\n" for _ in range(count))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with texts and two trained models, one of which carries its state."""
    folder = tmp_path_factory.mktemp("api")
    (folder / "corpus.txt").write_text(text(300, 1))
    (folder / "other.txt").write_text(text(50, 2))
    for name, carry in (("model", False), ("carried", True)):
        options = {"lines": not carry, "hidden": 12, "epochs": 2, "carry_state": carry, "threads": 1}
        corpus = folder / "corpus.txt"
        if carry:
            corpus = folder / "raw.txt"
            corpus.write_text(text(300, 3).replace("\n", " "))
        list(rnnlm.train(corpus, folder / name, **options))
    return folder


@pytest.fixture
def lm(folder):
    """Return a trained model."""
    return rnnlm.load(folder / "model")


def test_the_page_runs(tmp_path, monkeypatch, capsys):
    """The code of docs/python.md does what the page says, and prints a line for each epoch."""
    monkeypatch.chdir(tmp_path)
    Path("corpus.txt").write_text(text(300, 1))
    Path("other.txt").write_text(text(50, 2))
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    assert len(code) >= 6
    names = {}
    for part in code:
        exec(compile(part, str(PAGE), "exec"), names)
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in out[:3]] == ["1", "2", "3"]
    assert out[3] == "3 epochs done"
    assert out[5].startswith("missing: there is no model here; train one with")


def test_each_name_is_there():
    """Each name that the package lists can be imported from it, and no other."""
    for name in rnnlm.__all__:
        assert getattr(rnnlm, name) is not None
    assert set(dir(rnnlm)) >= set(rnnlm.__all__)
    with pytest.raises(AttributeError, match="no attribute 'tain'"):
        _ = rnnlm.tain


def test_importing_it_loads_nothing():
    """`import rnnlm` waits for numpy when something is asked of it, not before."""
    code = "import sys, rnnlm; print('numpy' in sys.modules); rnnlm.load; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def log_probabilities(model, words):
    """Return log p of each of these words, by single steps from the start."""
    vocabulary, ids = model.saved.vocabulary, model.saved.vocabulary.encode(words)
    log_p, states = model.saved.model.step(np.array([SENTENCE_END]), model.saved.model.start(1), Workspace())
    found = []
    for number in ids:
        found.append(float(log_p[0, number]))
        log_p, states = model.saved.model.step(np.array([number]), states, Workspace())
    assert len(vocabulary) == log_p.shape[1]
    return found


@pytest.mark.parametrize("name", ["model", "carried"])
def test_surprisals_are_those_of_single_steps(folder, name):
    """Each word's bits are -log2 of what the model, word by word, gives it; sentences end in </s>."""
    lm = rnnlm.load(folder / name)
    sentence = "the old man sleeps.\nA dog sings." if name == "model" else "the old man sleeps. A dog sings."
    words = ["the", "old", "man", "sleeps", ".", "</s>", "A", "dog", "sings", ".", "</s>"]
    found = lm.surprisals(sentence)
    assert [word for word, _ in found] == words
    expected = [-log_p / math.log(2) for log_p in log_probabilities(lm, words)]
    assert [bits for _, bits in found] == pytest.approx(expected, rel=1e-4)
    assert lm.log_prob(sentence) == pytest.approx(-math.log(2) * sum(expected), rel=1e-5)


def test_unknown_words_are_read_as_such(lm):
    """A word that the model does not know keeps its spelling in the answer and has the probability of <unk>."""
    (_, known), (word, bits), *_ = lm.surprisals("the zebra sleeps.")
    assert word == "zebra"
    assert bits == pytest.approx(lm.surprisals("the <unk> sleeps.")[1][1])
    assert known == pytest.approx(lm.surprisals("the cat sleeps.")[0][1])


def test_next_words_are_the_distribution_after_a_text(lm):
    """They are sorted, sum to one, and are what single steps give."""
    words = lm.next_words("the cat", 10**6)
    assert len(words) == len(lm.saved.vocabulary)
    probabilities = [probability for _, probability in words]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1)
    found = dict(words)
    for word in ("sleeps", "</s>", "<unk>"):
        assert found[word] == pytest.approx(math.exp(log_probabilities(lm, ["the", "cat", word])[-1]), rel=1e-4)
    assert lm.next_words("the cat", 2) == words[:2]
    with pytest.raises(SettingsError, match="count"):
        lm.next_words("the cat", 0)
    first = dict(lm.next_words("", 10**6))
    assert max(first[word] for word in ("The", "the", "a")) > first["sleeps"]


def test_a_prompt_is_cut_like_a_text(folder):
    """Its last sentence is continued; what stands before is read first where the model carries its state."""
    carried, reset = rnnlm.load(folder / "carried"), rnnlm.load(folder / "model")
    assert carried.prompt("The cat sleeps. A dog").words == ["A", "dog"]
    assert carried.prompt("The cat sleeps. A dog").before == [["The", "cat", "sleeps", "."]]
    assert carried.prompt("The zebra sleeps. The zebra").unknown == ["zebra"]
    assert reset.prompt("The cat sleeps.\nA dog").before == []
    alone, after = (carried.next_words(prompt, 3) for prompt in ("A dog", "The cat sleeps. A dog"))
    assert alone != after
    words = ["The", "cat", "sleeps", ".", "</s>", "A", "dog", after[0][0]]
    assert after[0][1] == pytest.approx(math.exp(log_probabilities(carried, words)[-1]), rel=1e-4)
    assert reset.next_words("A dog", 3) == reset.next_words("The cat sleeps.\nA dog", 3)
    for sentence in carried.generate(3, "The cat sleeps. A dog", seed=1):
        assert sentence.startswith("A dog")


def test_generate_is_repeatable(lm):
    """The same seed gives the same sentences, one by one or as a list, on any number of threads."""
    first = lm.generate(5, prompt="The", seed=3, temperature=0.8, max_words=6, tokens=True)
    assert first == list(lm.sentences(5, "The", seed=3, temperature=0.8, max_words=6, tokens=True))
    assert first == rnnlm.load(lm_folder(lm), threads=2).generate(
        5, prompt="The", seed=3, temperature=0.8, max_words=6, tokens=True
    )
    assert all(sentence.split()[0] == "The" and len(sentence.split()) <= 6 for sentence in first)
    assert len(set(lm.generate(20))) > 1


def lm_folder(lm):
    """Return where a model of these tests was read."""
    return Path(lm.saved.origin.settings.corpus[0]).parent / "model"


def test_perplexity_is_that_of_the_words(folder, lm):
    """The score of a file is that of its sentences' surprisals."""
    score = lm.perplexity(folder / "other.txt")
    total = math.fsum(lm.log_prob(line) for line in text(50, 2).splitlines())
    assert score.log_likelihood == pytest.approx(total, rel=1e-5)
    assert (score.sentences, score.unknown) == (50, 0)
    assert repr(lm).startswith("<rnnlm.Model: elman, 12 hidden units, ")


@pytest.mark.parametrize(("cell", "carried"), [("relu", False), ("gru", True), ("lstm", True)])
def test_models_of_every_cell_can_be_asked(folder, cell, carried):
    """Several layers, tied: surprisals are those of single steps, and the sum of them is what a text scores."""
    network = {"cell": cell, "layers": 2, "tied": True, "hidden": 12, "carry_state": carried}
    list(rnnlm.train(folder / "corpus.txt", folder / cell, lines=True, epochs=1, threads=1, **network))
    lm = rnnlm.load(folder / cell, threads=2)
    assert repr(lm).startswith(f"<rnnlm.Model: {cell}, 2 x 12 hidden units, ")
    words, bits = zip(*lm.surprisals("the cat sleeps."), strict=True)
    assert bits == pytest.approx([-log_p / math.log(2) for log_p in log_probabilities(lm, words)], rel=1e-4)
    assert lm.perplexity(folder / "other.txt").log_likelihood == pytest.approx(lm.log_prob(text(50, 2)), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": 0}, "--hidden is 0; it takes a whole number from 1 up to 100,000"),
        ({"hidden": 8.0}, "--hidden is 8.0"),
        ({"hidden": True}, "--hidden is True"),
        ({"dropout": 1.0}, "--dropout is 1.0; it takes a number from 0 to below 1"),
        ({"lr": float("nan")}, "--lr is nan"),
        ({"seed": -1}, "--seed is -1"),
        ({"optimizer": "foo"}, "--optimizer is 'foo'; it takes one of sgd, adagrad, adam"),
        ({"vocab": 5}, "--vocab is 5; it takes a path"),
        ({"encoding": None}, "--encoding is None"),
        ({"hiden": 5}, "there is no option 'hiden'"),
        ({"momentum": 0.5, "optimizer": "adam"}, "--momentum goes with --optimizer sgd"),
        ({"rate_power": 0.5, "optimizer": "adagrad"}, "--rate-power goes with --optimizer sgd"),
        ({"valid": "x", "valid_fraction": 0.1}, "--valid-fraction has no effect beside --valid"),
        ({"vocab": "x", "vocab_size": 9}, "--vocab-size has no effect beside --vocab"),
        ({"vocab": "x", "min_count": 9}, "--min-count has no effect beside --vocab"),
        ({"bptt": 5, "bptt_truncate": 5}, "--bptt-truncate 5 has no effect in windows of --bptt 5 steps"),
        ({"pretokenized": True, "lines": True}, "--pretokenized takes a line as a sentence already"),
        ({"resume": True, "overwrite": True}, "give one of them"),
        ({"resume": True, "from_": "x"}, "give one of them"),
        ({"model": ""}, "'' is no name of a folder"),
        ({"model": "a\0b"}, "is no name of a folder"),
        ({"corpus": ()}, "there is no text to train on"),
        ({"corpus": ["-", "-"]}, "standard input is one text"),
        ({"corpus": 5}, "the corpus is 5; it takes a list"),
    ],
    ids=str,
)
def test_wrong_options_are_refused_at_once(tmp_path, monkeypatch, options, message):
    """Before anything is read or made: one sentence that names the option as the command line writes it."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(rnnlm.RnnlmError) as caught:
        rnnlm.train(**{"corpus": "missing.txt", "model": "m", **options})
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_numbers_of_numpy_are_numbers(folder):
    """A notebook's numbers need no conversion."""
    options = {"hidden": np.int64(3), "lr": np.float32(0.001), "epochs": np.uint8(1), "dropout": 0}
    events = rnnlm.train(folder / "other.txt", folder / "numpy", lines=True, **options)
    run = next(iter(events)).run
    assert (type(run.settings.lr), type(run.settings.dropout)) == (float, float)
    assert type(run.saved.model.settings.hidden) is int
    events.close()


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1},
        {"top_k": 0},
        {"top_p": 1.5},
        {"min_words": 5, "max_words": 4},
        {"temperature": 0, "top_k": 3},
        {"temperature": 0, "top_p": 0.5},
        {"temperature": 0, "seed": 3},
        {"seed": -1},
        {"count": -1},
        {"count": 1.5},
        {"colour": 1},
    ],
    ids=str,
)
def test_wrong_choices_are_refused_when_sentences_are_asked_for(lm, options):
    """Not when the first is drawn."""
    with pytest.raises(rnnlm.RnnlmError):
        lm.sentences(**options)


def test_texts_without_words_and_with_marks(lm):
    """A text without words has no surprisals; a mark of the model's own is no word."""
    with pytest.raises(rnnlm.RnnlmError, match="has no words"):
        lm.surprisals(" \n")
    with pytest.raises(rnnlm.RnnlmError, match="own mark"):
        lm.log_prob("a </s> b")


def test_a_model_that_overflows_says_so(lm):
    """Weights at the edge of float32 give a sentence, without a warning."""
    for name in ("U", "V"):
        lm.saved.model.parameters[name] *= np.float32(3e38)
    for ask in (lambda: lm.log_prob("the cat"), lambda: lm.generate(1, seed=1)):
        with pytest.raises(rnnlm.RnnlmError, match="no longer numbers"):
            ask()


def settings_of_process():
    """Return what of NumPy and BLAS a program may have set."""
    return np.geterr(), [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]


def test_a_program_keeps_its_settings(folder, lm, tmp_path):
    """Between two events or sentences, and after generators that were left in any order, all is as it was."""
    with np.errstate(divide="warn", over="raise"), threadpoolctl.threadpool_limits(2, user_api="blas"):
        before = settings_of_process()
        events = rnnlm.train(folder / "other.txt", tmp_path / "m", lines=True, hidden=3, epochs=1)
        for _ in events:
            assert settings_of_process() == before
        first, second = lm.sentences(9, seed=1), lm.sentences(9, seed=2)
        next(first)
        next(second)
        first.close()
        second.close()
        assert settings_of_process() == before
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda seed: lm.generate(20, seed=seed), range(16)))
        assert settings_of_process() == before


def test_a_generator_may_go_on_in_another_thread(folder, lm, tmp_path):
    """What is begun in one thread can be finished in another."""
    sentences = lm.sentences(5, seed=1)
    found = [next(sentences)]
    with ThreadPoolExecutor(1) as pool:
        found += pool.submit(list, sentences).result()
    assert found == lm.generate(5, seed=1)


@pytest.mark.parametrize("way", ["pass", "raise SystemExit(3)", "raise KeyError"])
def test_a_program_that_ends_saves_its_run(folder, tmp_path, way):
    """A run that a program holds when it ends is saved where it was."""
    code = f"""
import rnnlm
events = rnnlm.train({str(folder / "other.txt")!r}, "m", lines=True, hidden=3, epochs=3, threads=1)
for event in events:
    if isinstance(event, rnnlm.Progress) and (event.epoch, event.window) == (2, 2):
        break
{way}
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert "Exception ignored" not in done.stderr
    event = next(iter(rnnlm.train(model=tmp_path / "m", resume=True, threads=1)))
    assert (event.run.state.epoch, event.run.state.window) == (2, 2)


def test_a_run_is_saved_before_it_is_told_of(folder, tmp_path):
    """Who stops listening at once can resume."""
    for event in rnnlm.train(folder / "other.txt", tmp_path / "m", lines=True, hidden=3, epochs=1):
        assert isinstance(event, rnnlm.Started)
        break
    assert list(rnnlm.train(model=tmp_path / "m", resume=True))[-1].reason == "1 epoch done"


@pytest.mark.parametrize(
    "ask",
    [
        lambda lm: lm.perplexity(),
        lambda lm: lm.perplexity(5),
        lambda lm: lm.perplexity(["a.txt"]),
        lambda lm: lm.next_words("the", "x"),
        lambda lm: lm.next_words("the", -1),
        lambda lm: lm.next_words(5),
        lambda lm: lm.surprisals(None),
        lambda lm: lm.generate(2, prompt=5),
        lambda lm: lm.generate(2, tokens="no"),
        lambda lm: rnnlm.load("model", threads="2"),
        lambda lm: rnnlm.load(lm_folder(lm), threads=0),
        lambda lm: rnnlm.train("p.txt", None),
        lambda lm: rnnlm.train("p.txt", b"m"),
        lambda lm: rnnlm.train("p.txt", resume="no"),
        lambda lm: rnnlm.train("p.txt", initial="m"),
        lambda lm: rnnlm.train("p.txt", threads=np.zeros(3)),
        lambda lm: rnnlm.train("p.txt", from_=np.zeros(3)),
        lambda lm: rnnlm.train("p.txt", lines=np.zeros(3)),
        lambda lm: rnnlm.train("p.txt", save_every="often"),
        lambda lm: next(rnnlm.train(model=lm_folder(lm), resume=True, line_is_sentence=True)),
        lambda lm: next(rnnlm.train(model=lm_folder(lm), resume=True, check=1)),
    ],
)
def test_what_cannot_be_asked(lm, ask):
    """Whatever is given, one sentence answers."""
    with pytest.raises(rnnlm.RnnlmError):
        ask(lm)


def test_working_lets_no_warning_out():
    """Inside `working` what overflows is looked at, and not warned of, on every thread."""
    with working(2) as work:
        huge = np.full(9, 3e38, np.float32)
        assert all(np.isinf(work.each(lambda part: (huge * huge)[part], range(9))))
