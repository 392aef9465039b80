"""`rnnlm mix` as a user meets it: weights, vocabularies that differ, streams of other programs, files of mixtures."""

import json
import math
import os
import random
import re
from pathlib import Path

import numpy as np
import pytest

import rnnlm
import test_arpa
import test_cli
from rnnlm import api
from rnnlm.arpa import Arpa
from rnnlm.errors import ModelError, RnnlmError
from rnnlm.mixing import best_weights
from rnnlm.mixture import Mixture, load, open_part, open_scorer

run = test_cli.run  # a fixture
SENTENCE = test_cli.SENTENCE
TEXT = "the cat sleeps .\nthe zebra sings .\nthe bird <unk> .\n"
WORDS = [[*line.split(), "</s>"] for line in TEXT.splitlines()]
PREDICTIONS = sum(map(len, WORDS))


def arpa_text(words, pairs, seed):
    """Return an ARPA file of single words and pairs, whose probabilities sum to one."""
    draw = random.Random(seed)
    shares = [draw.random() for _ in words]
    single = dict(zip(words, (share / sum(shares) for share in shares), strict=True))
    seen = {pair: draw.random() * 0.3 for pair in pairs}
    lines = [f"\\data\\\nngram 1={len(words) + 1}\nngram 2={len(pairs)}\n\n\\1-grams:"]
    for word in ("<s>", *words):
        after = [second for first, second in pairs if first == word]
        left = 1 - sum(seen[word, second] for second in after)
        backoff = math.log10(left / (1 - sum(single[second] for second in after)))
        lines.append(f"{math.log10(single.get(word, 1)):.9f}\t{word}\t{backoff:.9f}")
    lines += ["\n\\2-grams:", *(f"{math.log10(p):.9f}\t{a} {b}" for (a, b), p in seen.items()), "\n\\end\\\n"]
    return "\n".join(lines)


FIRST = arpa_text(["<unk>", "</s>", "the", "cat", "."], [("<s>", "the"), ("the", "cat"), (".", "</s>")], 1)
SECOND = arpa_text(
    ["<unk>", "</s>", "the", "zebra", "sings", "bird", "."], [("the", "zebra"), ("zebra", "<unk>"), ("<s>", "<unk>")], 2
)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """Return the folder of a small model of ours, of pretokenized text."""
    folder = tmp_path_factory.mktemp("network")
    (folder / "corpus.txt").write_text(test_cli.sentences(300))
    options = {"pretokenized": True, "carry_state": False, "hidden": 8, "epochs": 1, "threads": 1}
    list(rnnlm.train(folder / "corpus.txt", folder / "model", **options))
    return folder / "model"


@pytest.fixture
def files(tmp_path, network):
    """Write a text and two ARPA files; return the names of three models."""
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "a.arpa").write_text(FIRST)
    (tmp_path / "b.arpa").write_text(SECOND)
    return str(network), "a.arpa", "b.arpa"


@pytest.fixture
def mix(run, files):
    """Return a function that mixes models on the text and returns what --json prints."""

    def call(*arguments):
        code, out, err = run("mix", "text.txt", *arguments, "--threads", 1, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)

    return call


def stream(log10_p, form, unknown=()):
    """Write probabilities of TEXT as another program does."""
    lines, values = [], iter(zip(log10_p, [*unknown, *[False] * PREDICTIONS], strict=False))
    for sentence in WORDS:
        rows, before = [], "<s>"
        for word, (value, strange) in zip(sentence, values, strict=False):
            if form == "mikolov":
                lines.append(f"{0 if strange else 10**value:.12E} anything\n")
            elif form == "srilm":
                p = "[OOV] 0 [ -inf ]" if strange else f"[2gram] {10**value:.7g} [ {value:.9g} ]"
                rows.append(f"\tp( {word} | {before} {'' if before == '<s>' else '...'}) \t= {p}\n")
            else:
                rows.append(f"{word}={0 if strange else 7} 2 {value:.9g}\t")
            before = word
        if form == "srilm":
            lines += [" ".join(sentence[:-1]) + "\n", *rows, "1 sentences, 4 words, 0 OOVs\n", "0 zeroprobs\n", "\n"]
        elif form == "kenlm":
            lines.append("".join(rows) + "Total: -9.1 OOV: 0\n")
    ends = {"kenlm": "Perplexity including OOVs:\t9\nPerplexity excluding OOVs:\t9\nOOVs:\t0\nTokens:\t15\n"}
    return "".join(lines) + ends.get(form, "")


def some_log10(seed=1):
    """Return a log10 probability for each prediction of TEXT."""
    draw = random.Random(seed)
    return [-4 * draw.random() - 0.01 for _ in range(PREDICTIONS)]


def by_definition(columns, precision):
    """Return the best weights and the number of steps, in plain loops: the referee of `best_weights`."""
    count, weights, steps = len(columns), [0.5, *[0.5 / (len(columns) - 1)] * (len(columns) - 1)], 0
    while True:
        sums = [0.0] * count
        for row in zip(*columns, strict=True):
            mixture = sum(weight * p for weight, p in zip(weights, row, strict=True))
            for number in range(count):
                sums[number] += weights[number] * row[number] / mixture
        new = [total / len(columns[0]) for total in sums]
        steps += 1
        moved = max(abs(a - b) for a, b in zip(new, weights, strict=True))
        weights = new
        if moved <= precision:
            return weights, steps


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("precision", [1e-3, 1e-6])
def test_weights_are_those_of_expectation_maximization(count, precision):
    """Weights and number of steps are those of plain loops, and no weights near them are better."""
    table = np.array([some_log10(seed) for seed in range(count)]).T * math.log(10)
    told = []
    weights, steps = best_weights(table, precision, told.append)
    expected, expected_steps = by_definition(np.exp(table.T).tolist(), precision)
    np.testing.assert_allclose(weights, expected, rtol=1e-9)
    assert steps == expected_steps == len(told)
    perplexities = [iteration.perplexity for iteration in told]
    assert perplexities == sorted(perplexities, reverse=True)


def test_very_small_probabilities_are_mixed_too():
    """What double precision cannot hold as a probability still counts."""
    table = np.array([[-2000.0, -2001.0], [-3001.0, -3000.0], [-math.inf, -5.0], [-math.inf, -math.inf]])
    weights, _ = best_weights(table, 1e-6, lambda _: None)
    assert weights.sum() == pytest.approx(1)
    assert (weights > 0).all()


def test_a_mixture_sums_to_one(files, run):
    """With three vocabularies, after any words, all words and one that nobody knows have probability 1 together."""
    parts = [open_part(name) for name in files]
    mixture = Mixture(parts, [0.5, 0.2, 0.3])
    assert mixture.words > {"</s>", "the", "zebra", "cat", "sleeps"}
    assert not any(set(part.words) == mixture.words for part in parts)
    for history in ([], ["the"], ["the", "zebra"], ["unseen"], ["cat", "unseen", "."]):
        follow = [*sorted(mixture.words - {"</s>"}), "anything else"]
        table = mixture.part_log_probs([[*history, word] for word in follow])
        table = table.reshape(len(follow), len(history) + 2, 3)[:, len(history)]
        ends = mixture.part_log_probs([history])[-1:]
        np.testing.assert_allclose(np.exp(np.concatenate([table, ends])).sum(axis=0), 1, rtol=1e-6)
        both = [found[len(history)] for found in mixture.log_probs([*([*history, word] for word in follow), history])]
        assert np.exp(both).sum() == pytest.approx(1, rel=1e-6)


def test_the_table_has_each_model_and_the_mixture(run, files):
    """A row for each model, in order, then the mixture, whose perplexity is the least, and what was counted."""
    code, out, err = run("mix", "text.txt", *files, "--threads", 1)
    assert (code, err) == (0, "")
    rows = [row.split() for row in out.splitlines()]
    assert [row[0] for row in rows[2:5]] == ["a.arpa", "b.arpa", "mixture"]
    assert sum(float(row[1]) for row in rows[1:4]) == pytest.approx(1, abs=2e-4)
    assert float(rows[4][1]) < min(float(row[2]) for row in rows[1:4])
    counts, *notes = out.splitlines()[5:]
    assert re.fullmatch(r"3 sentences, 12 words, 1 unknown; \d+ iterations", counts)
    parts = list(map(open_part, files))
    lacking = [len(Mixture(parts, [1 / 3] * 3).words) - len(part.words) for part in parts]
    bits = re.findall(r"it (\d+\.\d) bits more", " ".join(notes))
    assert bits == [f"{math.log2(each + 1):.1f}" for each in lacking if each]
    assert max(map(len, out.splitlines())) <= 80


def test_models_are_compared_on_the_same_words(mix, files):
    """Unknown is what no model has; each is scored with its shares of <unk>, as a part of the mixture."""
    found = mix(*files)
    assert (found["sentences"], found["words"], found["unknown"], found["predictions"]) == (3, 12, 1, PREDICTIONS)
    mixture = Mixture([open_part(name) for name in files], [1 / 3] * 3)
    table = mixture.part_log_probs([sentence[:-1] for sentence in WORDS])
    for column, model in zip(table.T, found["models"], strict=True):
        assert model["perplexity"] == pytest.approx(math.exp(-column.mean()))
    weights = [model["weight"] for model in found["models"]]
    mixture.weights = np.array(weights)
    total = np.concatenate(mixture.log_probs([sentence[:-1] for sentence in WORDS])).sum()
    assert found["perplexity"] == pytest.approx(math.exp(-total / PREDICTIONS))


def test_a_model_of_ours_alone_has_the_perplexity_that_evaluate_prints(run, mix, files):
    """Both figures, with and without unknown words."""
    code, out, _ = run("evaluate", "text.txt", "--model", files[0], "--json", "--threads", 1)
    expected, found = json.loads(out), mix(files[0])
    assert code == 0
    for name in ("perplexity", "perplexity_excluding_unknown", "unknown", "predictions"):
        assert found[name] == pytest.approx(expected[name], rel=1e-5)
    assert found["models"][0]["weight"] == 1


def test_a_model_that_carries_its_state_is_told(run, files):
    """In a mixture it reads each sentence by itself, as evaluate does with --no-carry-state alone."""
    assert "carries its state" not in run("mix", "text.txt", files[0])[1]
    options = ("--pretokenized", "--hidden", 3, "--epochs", 1, "--carry-state", "--model", "carried", "--threads", 1)
    assert run("train", "text.txt", *options, "--overwrite")[0] == 0
    out = run("mix", "text.txt", "carried")[1]
    assert "carried carries its state in rnnlm evaluate; here it reads each sentence by itself" in " ".join(out.split())
    out = run("mix", "text.txt", "carried", "--json")[1]
    alone = json.loads(run("evaluate", "text.txt", "--model", "carried", "--no-carry-state", "--json")[1])
    assert json.loads(out)["perplexity"] == pytest.approx(alone["perplexity"], rel=1e-5)


def test_an_arpa_file_alone_has_the_perplexities_that_kenlm_prints(mix, files):
    """Including and excluding OOVs, over words and ends of sentences."""
    model = open_part("a.arpa")
    log_p = np.concatenate(model.log_probs([sentence[:-1] for sentence in WORDS]))
    known = np.array([not strange for sentence in WORDS for strange in model.unknown(sentence)])
    found = mix("a.arpa")
    assert found["perplexity"] == pytest.approx(math.exp(-log_p.mean()))
    assert found["perplexity_excluding_unknown"] == pytest.approx(math.exp(-log_p[known].mean()))
    assert found["unknown"] == np.count_nonzero(~known) == 5


def test_an_arpa_file_alone_is_printed_as_kenlm_prints_it(run, tmp_path):
    """Words with their numbers in the file, the lengths of n-grams, and totals are those of `query`, to the byte."""
    (tmp_path / "small.arpa").write_text(test_arpa.SMALL)
    (tmp_path / "t.txt").write_text("the cat sleeps\nzebra dog\n\n")
    code, out, err = run("score", "t.txt", "--model", "small.arpa", "--format", "kenlm")
    assert (code, err) == (0, "")
    assert out.startswith(
        "the=3 2 -0.4\tcat=4 3 -0.1\tsleeps=6 2 -0.5\t</s>=2 3 -0.15\tTotal: -1.15 OOV: 0\n"
        "zebra=0 1 -1.9\tdog=5 1 -1.2\t</s>=2 1 -1.05\tTotal: -4.1499996 OOV: 1\n"
        "</s>=2 1 -1.4\tTotal: -1.4 OOV: 0\nPerplexity including OOVs:\t"
    )


@pytest.mark.usefixtures("run")
def test_a_mixture_tells_its_longest_n_gram(files):
    """A network reads all that is before; of n-gram models the longest n-gram that one of them has found counts."""
    network, *ngrams = map(open_part, files)
    words = ["the", "cat", "the", "zebra"]
    each = [part.lengths(words) for part in ngrams]
    assert Mixture(ngrams, [0.5, 0.5]).lengths(words) == [*map(max, *each)] != each[0]
    mixture = Mixture([network, *ngrams], [0.5, 0.25, 0.25])
    assert mixture.lengths(words) == [2, 3, 4, 5, 6]
    assert mixture.numbers["<unk>"] == 0
    assert mixture.numbers["</s>"] == 2


def test_weights_may_be_given(mix, run, files):
    """They are taken as they are, in the order of the models; others than one for each, or another sum, are refused."""
    found = mix("a.arpa", "b.arpa", "--weights", "0.25, 0.75")
    assert [model["weight"] for model in found["models"]] == [0.25, 0.75]
    assert found["iterations"] == 0
    for weights in ("0.5", "0.5,0.6", "1,-1", "nan,1", "x", "", "0.2,0.3,0.5"):
        code, out, err = run("mix", "text.txt", "a.arpa", "b.arpa", "--weights", weights)
        assert (code, out) == (2, "")
        assert "weights" in err


@pytest.mark.parametrize("form", ["mikolov", "srilm", "kenlm"])
def test_streams_of_other_programs(mix, tmp_path, form):
    """Three formats, told from each other by themselves; what they say of each word is what is mixed."""
    first, second, unknown = some_log10(1), some_log10(2), [False] * 6 + [True] + [False] * 8
    (tmp_path / "one").write_text(stream(first, form))
    (tmp_path / "two").write_text(stream(second, form, unknown))
    found = mix("--stream", "one", "--stream", "two")
    one, two = np.array(first) * math.log(10), np.array(second) * math.log(10)
    if form != "kenlm":  # it gives unknown words a probability
        two[6] = -math.inf
    weights, steps = by_definition([np.exp(one).tolist(), np.exp(two).tolist()], 1e-6)
    assert [model["weight"] for model in found["models"]] == pytest.approx(weights, rel=1e-5)
    assert found["iterations"] == steps
    assert found["models"][0]["perplexity"] == pytest.approx(math.exp(-one.mean()), rel=1e-6)
    assert found["models"][1]["perplexity"] == (pytest.approx(math.exp(-two.mean())) if form == "kenlm" else None)
    assert found["unknown"] == 0


def test_the_format_of_srilm(run, files, tmp_path):
    """Lines of iterations go to standard error and the two of the result to standard output, as compute-best-mix's."""
    first, second = some_log10(1), some_log10(2)
    (tmp_path / "one").write_text(stream(first, "srilm"))
    (tmp_path / "two").write_text(stream(second, "srilm"))
    options = ("--stream", "one", "--stream", "two", "--format", "srilm", "--precision", 0.001)
    code, out, err = run("mix", "text.txt", *options)
    weights, steps = by_definition([[10**value for value in column] for column in (first, second)], 1e-3)
    assert code == 0
    shown = [f"{weight:.6g}" for weight in weights]
    assert out == (f"15 non-oov words, best lambda ({' '.join(shown)})\npairwise cumulative lambda (1 {shown[1]})\n")
    mean = sum(math.log((10**a + 10**b) / 2) for a, b in zip(first, second, strict=True)) / PREDICTIONS
    assert err.splitlines()[0] == f"iteration 1, lambda = (0.5 0.5), ppl = {math.exp(-mean):.6g}"
    assert len(err.splitlines()) == steps


def test_unknown_words_as_in_mikolovs_tool(mix, tmp_path):
    """A word that the network lacks costs it 1e-8, is the other's alone in the mixture, and is left out if both do."""
    net, other = some_log10(1), some_log10(2)
    (tmp_path / "net").write_text(stream(net, "mikolov", [False, True, True]))
    (tmp_path / "other").write_text(stream(other, "mikolov", [False, False, True]))
    found = mix("--stream", "net", "--stream", "other", "--weights", "0.6,0.4", "--oov", "mikolov")
    assert found["predictions"] == 14
    alone = [net[0], -8, *net[3:]]
    both = [
        math.log10(0.6 * 10**a + 0.4 * 10**b) for a, b in zip([net[0], *net[3:]], [other[0], *other[3:]], strict=True)
    ]
    both.append(math.log10(0.4) + other[1])
    assert found["models"][0]["perplexity"] == pytest.approx(10 ** (-sum(alone) / 14))
    assert found["models"][1]["perplexity"] == pytest.approx(10 ** (-(sum(other) - other[2]) / 14))
    assert found["perplexity"] == pytest.approx(10 ** (-sum(both) / 14))
    assert found["unknown"] == 1


def test_a_model_gives_nothing_to_what_it_lacks_in_mikolovs_way(mix, run, files):
    """Models lack words as streams do; `<unk>` in the text is a word like others there. What is left out is told."""
    found = mix("a.arpa", "b.arpa", "--oov", "mikolov")
    assert found["predictions"] == PREDICTIONS - 1  # neither has "sleeps"
    assert found["unknown"] == 4  # cat, zebra, sings, bird
    assert found["models"][1]["perplexity"] is None
    assert found["left_out"] == 1
    table = run("mix", "text.txt", "a.arpa", "b.arpa", "--oov", "mikolov")[1]
    assert "12 words, 4 unknown to some, 1 left out, as all lack them" in " ".join(table.split())
    assert max(map(len, table.splitlines())) <= 80
    assert mix("a.arpa", "b.arpa")["left_out"] == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"s\.txt, line 1: this is no stream"),
        ("hello\n", r"s\.txt, line 1: this is no stream"),
        ("0.5\n0.5\n1.5\n", r"s\.txt, line 3"),
        ("0.5\n0.5\n\n", r"s\.txt, line 3: a blank line is there"),
        ("0.5\n0.5\nnan\n", r"s\.txt, line 3"),
        ("0.5\n" * 14, r"s\.txt, line 14: the stream ends here, and the text goes on"),
        ("0.5\n" * 16, r"s\.txt, line 16: the stream goes on here, and the text has ended"),
        ("the=1 1 -1\tdog=2 1 -1\tTotal: -2 OOV: 0\n", r"line 1: 'dog' is predicted, where the text has 'cat'"),
        ("the=1 1 0.5\tcat=2 1 -1\t\n", r"s\.txt, line 1"),
        ("x\n\tp( the | <s> ) \t= [1gram] 0.1 [ -1 ]\n\tp( cat\n", r"s\.txt, line 3"),
        ("x\n\tp( the | <s> ) \t= [1gram] 0.1 [ 1 ]\n", r"s\.txt, line 2"),
        (
            b"the=1 1 -1\t\xff=2 1 -1\t\n",
            r"s\.txt, line 1: byte 0xFF at offset 11 is not valid UTF-8; convert the file",
        ),
    ],
)
def test_a_stream_that_is_not_of_the_text_is_refused(run, files, tmp_path, content, message):
    """One sentence with the stream's file and line."""
    (tmp_path / "s.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    code, out, err = run("mix", "text.txt", "a.arpa", "--stream", "s.txt")
    assert (code, out) == (1, "")
    assert SENTENCE.fullmatch(err)
    assert re.search(message, err)


def test_a_mixture_is_written_and_is_a_model(mix, run, files, tmp_path):
    """-o writes weights, paths and digests; what is loaded gives what was measured, from any folder."""
    (tmp_path / "sub").mkdir()
    code, out, err = run("mix", "text.txt", *files, "-o", "sub/mix.toml", "--json", "--threads", 1)
    assert (code, err) == (0, "Mixture: sub/mix.toml\n")
    found = json.loads(out)
    mixture = open_scorer(tmp_path / "sub/mix.toml")
    assert isinstance(mixture, Mixture)
    assert mixture.weights.tolist() == [model["weight"] for model in found["models"]]
    assert mixture.tokenizer.settings.pretokenized
    log_p = np.concatenate(mixture.log_probs([sentence[:-1] for sentence in WORDS]))
    assert math.exp(-log_p.mean()) == pytest.approx(found["perplexity"])
    assert run("mix", "text.txt", *files, "-o", "sub/mix.toml", "--threads", 1)[0] == 0  # a mixture may be replaced
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["mix.toml"]


def test_a_part_that_has_changed_is_refused(run, files, tmp_path):
    """The digests tell, and a missing part is named."""
    assert run("mix", "text.txt", "a.arpa", "b.arpa", "-o", "mix.toml")[0] == 0
    (tmp_path / "b.arpa").write_text(SECOND.replace("\n\\end\\", "\n\n\\end\\"))
    with pytest.raises(ModelError, match=r"mix\.toml: .*b\.arpa has changed since"):
        load(tmp_path / "mix.toml")
    (tmp_path / "b.arpa").unlink()
    with pytest.raises(RnnlmError, match=r"b\.arpa"):
        load(tmp_path / "mix.toml")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\x00",
        b"format = 2\n",
        b"format = 1\nmodel = 3\n",
        b"format = 1\nmodel = []\n",
        b"format = 1\n[[model]]\npath = 'a.arpa'\nweight = nan\nsha256 = ''\n",
        b"format = 1\n[[model]]\npath = 'a.arpa'\nweight = 0.5\nsha256 = ''\n",
        b"format = 1\n[[model]]\npath = 'a.arpa'\nweight = 1\nsha256 = ''\n",
        b"format = 1\n[[model]]\npath = 'a.arpa'\nweight = 1\nsha256 = ''\nmore = 1\n",
        b"a = " + b"[" * 5000,
    ],
)
def test_what_is_no_mixture_is_refused(files, tmp_path, content):
    """One sentence that names the file."""
    (tmp_path / "mix.toml").write_bytes(content)
    with pytest.raises(ModelError, match=r"mix\.toml") as caught:
        load(tmp_path / "mix.toml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("a.arpa", "-o", "mix.txt"), 2, "ends in .toml"),
        (("a.arpa", "-o", "no/mix.toml"), 1, "there is no folder"),
        (("a.arpa", "-o", "taken.toml"), 1, "another file"),
        (("a.arpa", "-o", "mix.toml", "--oov", "mikolov"), 2, "--oov mikolov"),
        (("a.arpa", "--stream", "s", "-o", "mix.toml"), 2, "a stream scores its own text"),
        (("mixed.toml",), 1, "no part of another"),
        (("a.arpa", "--json", "--format", "srilm"), 2, "--json"),
        (("a.arpa", "--precision", "0"), 2, "precision"),
        (("a.arpa", "--pretokenized", "--lines"), 2, "--lines"),
        ((), 2, "nothing to mix"),
        (("missing.arpa",), 1, "missing.arpa"),
        (("missing",), 1, "missing"),
        ((".",), 1, "holds no model"),
        (("text.txt",), 1, "this is no ARPA file"),
        (("a.arpa", "--encoding", "nonsense"), 2, "encoding"),
    ],
)
def test_what_cannot_be_done_is_said_before_the_work(run, files, tmp_path, options, code, message):
    """Wrong usage and files that cannot be used; nothing is written."""
    (tmp_path / "taken.toml").write_text("mine = true\n")
    before = {path.name for path in tmp_path.iterdir()}
    found, out, err = run("mix", "text.txt", *options)
    assert (found, out) == (code, "")
    assert message in err
    assert SENTENCE.search(err)
    assert {path.name for path in tmp_path.iterdir()} == before
    assert (tmp_path / "taken.toml").read_text() == "mine = true\n"


@pytest.mark.parametrize("content", [b"", b"\n\n", b"a \x00 b\n", b"a \xff\n", b"<s> a\n"])
def test_a_text_that_cannot_be_used(run, files, tmp_path, content):
    """The text is refused as `evaluate` refuses it."""
    (tmp_path / "text.txt").write_bytes(content)
    code, out, err = run("mix", "text.txt", "a.arpa")
    assert (code, out) == (1, "")
    assert SENTENCE.fullmatch(err)
    assert "text.txt" in err


def test_models_that_cut_texts_differently(run, files, tmp_path, network):
    """Models of raw and of pretokenized text need to be told how; ARPA files are read pretokenized."""
    (tmp_path / "corpus.txt").write_text(test_cli.sentences(200))
    options = {"lines": True, "hidden": 4, "epochs": 1, "threads": 1, "carry_state": False}
    list(rnnlm.train(tmp_path / "corpus.txt", tmp_path / "raw", **options))
    code, _, err = run("mix", "text.txt", network, "raw")
    assert code == 2
    assert "--pretokenized or --lines" in err
    assert run("mix", "text.txt", network, "raw", "--pretokenized")[0] == 0


def test_a_scorer_is_opened_by_what_it_is(files, tmp_path):
    """Folders and .npz are models of ours, others are known by their first bytes."""
    assert isinstance(open_scorer(files[0]), api.Model)
    assert isinstance(open_scorer(f"{files[0]}/best.npz"), api.Model)
    arpa = open_scorer(tmp_path / "a.arpa")
    assert isinstance(arpa, Mixture)
    assert isinstance(arpa.parts[0], Arpa)
    (tmp_path / "binary").write_bytes(b"mmap lm http://kheafield.com/code format version 5\n\0")
    with pytest.raises(ModelError, match="binary"):
        open_scorer(tmp_path / "binary")


def test_threads_change_no_result(run, files):
    """The figures are the same to the last digit."""
    one, two = (run("mix", "text.txt", *files, "--threads", threads, "--json") for threads in (1, 2))
    assert one == two


def test_damaged_streams_end_in_a_result_or_in_a_sentence(run, files, tmp_path):
    """Mutated streams of each format give figures, or one sentence with the file and the line."""
    choose = random.Random(5)
    pieces = [b"\x00", b"\xff", b"\t", b" ", b"\n", b"-", b"nan", b"1e999", b"inf", b"=", b"9" * 30, b"\tp( ", b""]
    for form in ("mikolov", "srilm", "kenlm") * 40:
        data = bytearray(stream(some_log10(), form).encode())
        for _ in range(choose.randint(1, 3)):
            at = choose.randrange(len(data))
            data[at : at + choose.randint(0, 12)] = choose.choice(pieces)
        (tmp_path / "s.txt").write_bytes(bytes(data))
        code, out, err = run("mix", "text.txt", "--stream", "s.txt", "--threads", 1)
        assert (code == 0 and out) or (code == 1 and not out and re.search(r"s\.txt, line \d+: |no model", err)), data
        assert code == 0 or SENTENCE.fullmatch(err)


def test_python_gets_the_same(files, mix):
    """`rnnlm.mix` gives weights and scores, tells of each iteration, and refuses what the command refuses."""
    told = []
    found = rnnlm.mix("text.txt", files, told=told.append)
    printed = mix(*files)
    assert list(found.weights) == [model["weight"] for model in printed["models"]]
    assert found.score.perplexity == printed["perplexity"]
    assert [iteration.number for iteration in told] == list(range(1, found.iterations + 1))
    for wrong in ({"oov": "none"}, {"weights": [1, 0.5, 0]}, {"precision": 0}, {"threads": 0}, {"lines": 3}):
        with pytest.raises(rnnlm.SettingsError):
            rnnlm.mix("text.txt", files, **wrong)


@pytest.fixture
def mixture_file(files, run):
    """Return the file of a mixture of a network and an ARPA file, in this folder."""
    Path("text.txt").write_text("".join(" ".join(sentence[:-1]) + "\n" for sentence in WORDS))
    code, _, err = run("mix", "text.txt", files[0], files[1], "--weights", "0.6,0.4", "-o", "both.toml")
    assert code == 0, err
    return "both.toml"


def test_every_command_takes_a_mixture(run, mixture_file, files):
    """`score`, `evaluate`, `rescore` and `next` answer for a mixture as the mixture itself does, and so for ARPA."""
    for name in (mixture_file, files[1]):
        lm = open_scorer(name)
        log_p = lm.log_probs([sentence[:-1] for sentence in WORDS])
        code, out, err = run("score", "text.txt", "--model", name)
        assert code == 0, err
        rows = [line.split("\t") for line in out.splitlines()]
        assert [float(row[0]) for row in rows] == pytest.approx([each.sum() / math.log(10) for each in log_p], abs=1e-5)
        assert [int(row[1]) for row in rows] == [len(sentence) for sentence in WORDS]
        report = json.loads(run("evaluate", "text.txt", "--model", name, "--json")[1])
        total = sum(each.sum() for each in log_p)
        assert report["perplexity"] == pytest.approx(math.exp(-total / report["predictions"]))
        assert report["unknown"] == sum(map(sum, (lm.unknown(sentence) for sentence in WORDS)))
        Path("list").write_text("0 " + " ".join(WORDS[0][:-1]) + "\n")
        code, out, err = run("rescore", "list", "--format", "mikolov", "--model", name)
        assert code == 0, err
        assert float(out) == pytest.approx(log_p[0].sum() / math.log(10), abs=1e-5)
        words = json.loads(run("next", " ".join(WORDS[0][:2]), "--model", name, "--json", "--count", 10**6)[1])["words"]
        assert sum(p for _, p in words) == pytest.approx(1, abs=1e-5)
        assert [p for _, p in words] == sorted((p for _, p in words), reverse=True)
        likely = dict(words)
        assert likely.get(WORDS[0][2], likely["<unk>"]) == pytest.approx(math.exp(log_p[0][2]))
    for options in (("score", "--keep-state"), ("score", "--words", "--rank"), ("evaluate", "--carry-state")):
        code, out, err = run(options[0], "text.txt", *options[1:], "--model", mixture_file)
        assert (code, out) == (1, "")
        assert "is for a model of ours alone; leave it out" in err


def test_unknown_words_and_infinite_figures_are_printed(run, files):
    """`<unk>` is a word to Mikolov's table; JSON has no infinity; a probability above 1 is refused."""
    Path("t.txt").write_text("the <unk>\nzebra\n")
    code, out, err = run("score", "t.txt", "--model", files[1], "--format", "mikolov")
    assert code == 0, err
    assert out.count("<unk>") == 1
    arpa = Path(files[1]).read_text()
    Path("inf.arpa").write_text(re.sub(r"^\S+\t<unk>", "-inf\t<unk>", arpa, flags=re.M))
    rows = [json.loads(line) for line in run("score", "t.txt", "--model", "inf.arpa", "--json")[1].splitlines()]
    assert [row["log10_probability"] for row in rows] == [None, None]
    Path("t.list").write_text("1 zebra\n")
    assert run("rescore", "t.list", "--format", "mikolov", "--model", "inf.arpa")[1] == "-inf\n"
    Path("big.arpa").write_text(re.sub(r"(\t<s>)\t\S+$", r"\1\t20", arpa, flags=re.M))
    code, _, err = run("score", "t.txt", "--model", "big.arpa")
    assert code == 1
    assert "a probability greater than 1, so its back-offs are wrong; make its file again" in err


def impossible(name):
    """Write an ARPA file that gives unknown words nothing."""
    Path(name).write_text(re.sub(r"^\S+\t<unk>", "-inf\t<unk>", FIRST, flags=re.M))


def test_srilm_counts_what_has_no_probability(run, files):
    """An unknown word of probability 0 is an OOV, a known one a zeroprob, and neither is in a sum."""
    impossible("inf.arpa")
    Path("t.txt").write_text("the zebra\n")
    code, out, err = run("score", "t.txt", "--model", "inf.arpa", "--format", "srilm")
    assert code == 0, err
    assert "\tp( <unk> | the ...) \t= [OOV] 0 [ -inf ]\n" in out
    assert out.count("1 sentences, 2 words, 1 OOVs\n0 zeroprobs, logprob= -") == 2
    logs = [float(found) for found in re.findall(r"gram\] \S+ \[ (\S+) \]", out)]
    assert len(logs) == 2
    assert float(re.search(r" ppl= (\S+)", out)[1]) == pytest.approx(10 ** (-sum(logs) / 2), rel=1e-5)
    Path("stream").write_text(out)
    found = json.loads(run("mix", "t.txt", "--stream", "stream", "--json")[1])
    assert found["perplexity_excluding_unknown"] == pytest.approx(10 ** (-sum(logs) / 2), rel=1e-4)


def test_blank_lines_that_are_not_printed_are_not_read(run, files):
    """The state that is kept is that after the last line."""
    Path("t.txt").write_text("the cat .\n\nthe bird .\n")
    Path("u.txt").write_text("the cat .\nthe bird .\n")
    for form in ("srilm", "fasterrnnlm"):
        options = ("--model", files[0], "--format", form, "--cache", 50)
        outs = [run("score", name, *options)[1].replace(name, "x") for name in ("t.txt", "u.txt")]
        assert outs[0] == outs[1] != ""


def test_a_hypothesis_of_no_probability_is_the_worst(run, files):
    """With a weight of 0 too, and where weights are looked for."""
    impossible("inf.arpa")
    Path("dev").write_text("0 ||| zebra ||| LM= 1 ||| -5\n0 ||| the cat ||| LM= 1 ||| -1\n")
    Path("ref").write_text("the cat\n")
    for weight in (0, 1):
        code, out, err = run("rescore", "dev", "--model", "inf.arpa", "--best", "--weight", weight)
        assert (code, out) == (0, "the cat\n"), err
    pytest.importorskip("rapidfuzz")
    code, out, err = run("rescore", "dev", "--model", "inf.arpa", "--tune", "ref")
    assert code == 0, err
    assert re.search(r"best by these weights +0 word errors of 2", err)
    Path("ref").write_text("the cat\n<s> the cat </s>\n")
    code, _, err = run("rescore", "dev", "--model", "inf.arpa", "--tune", "ref")
    assert (code, "Error: ref, line 2: '<s>' is the model's own mark" in err) == (1, True)


def test_an_id_of_another_file_is_no_list_of_its_own(run, files):
    """Where one hypothesis of each list is wanted, two files may not both begin with list 0."""
    for name in ("a", "b"):
        Path(name).write_text("0 ||| the cat ||| LM= 1 ||| -1\n")
    assert run("rescore", "a", "--model", files[0], "--best")[0] == 0
    code, _, err = run("rescore", "a", "b", "--model", files[0], "--best")
    assert (code, "Error: b, line 1: the ID '0' comes again after others" in err) == (1, True)


def test_a_stream_of_the_text_is_folded_as_the_text_is(run, files, tmp_path):
    """Beside a model that reads in lower case."""
    Path("raw.txt").write_text(test_cli.sentences(200))
    small = ("--pretokenized", "--epochs", 1, "--hidden", 4, "--threads", 1)
    assert run("train", "raw.txt", *small, "--lowercase", "--model", "low")[0] == 0
    Path("upper.txt").write_text("The cat sleeps .\n")
    Path("stream").write_text(run("score", "upper.txt", "--model", files[1], "--format", "srilm", "--pretokenized")[1])
    assert "p( The |" not in Path("stream").read_text()  # unknown to that model
    Path("stream").write_text(Path("stream").read_text().replace("p( <unk> | <s> )", "p( The | <s> )"))
    code, _, err = run("mix", "upper.txt", "low", "--stream", "stream", "--threads", 1)
    assert code == 0, err


def test_a_mixture_of_raw_texts_scores_lines(run, files, tmp_path):
    """A line is a sentence there, whatever the models know of ends of sentences."""
    for seed in (1, 2):
        Path("raw.txt").write_text(" ".join(test_cli.sentences(200, seed).splitlines()) + f" Dr. Cat{seed} sleeps.\n")
        code, _, err = run("train", "raw.txt", "--model", f"raw{seed}", "--epochs", 1, "--hidden", 4, "--threads", 1)
        assert code == 0, err
    code, _, err = run("mix", "text.txt", "raw1", "raw2", "a.arpa", "--lines", "-o", "m.toml", "--threads", 1)
    assert code == 0, err
    code, out, err = run("score", "text.txt", "--model", "m.toml")
    assert (code, len(out.splitlines())) == (0, 3), err
    Path("prompts").write_text("the\nthe cat\n")
    code, out, err = run("next", "--file", "prompts", "--pretokenized", "--model", "m.toml", "--count", 1)
    assert (code, len(out.splitlines())) == (0, 2), err


def test_a_pipe_is_no_part(run):
    """A mixture whose part is a pipe is refused at once, not waited for."""
    os.mkfifo("pipe")
    Path("p.toml").write_text('format = 1\n[[model]]\npath = "pipe"\nweight = 1.0\nsha256 = "00"\n')
    Path("t.txt").write_text("the\n")
    code, _, err = run("score", "t.txt", "--model", "p.toml")
    assert code == 1
    assert "Error: p.toml: pipe: cannot be read" in err


def test_a_mixture_of_models_that_cut_texts_differently_is_used(run, files, tmp_path):
    """Their mixture rescores lists, whose words are cut already, and `next` says how to go on."""
    Path("raw.txt").write_text(test_cli.sentences(200))
    code, _, err = run("train", "raw.txt", "--lines", "--model", "raw", "--epochs", 1, "--hidden", 4, "--threads", 1)
    assert code == 0, err
    Path("text.txt").write_text("".join(" ".join(sentence[:-1]) + "\n" for sentence in WORDS))
    code, _, err = run("mix", "text.txt", files[0], "raw", "--pretokenized", "-o", "m.toml")
    assert code == 0, err
    Path("t.list").write_text("1 the cat\n")
    code, _, err = run("rescore", "t.list", "--format", "mikolov", "--model", "m.toml")
    assert code == 0, err
    code, _, err = run("next", "the", "--model", "m.toml")
    assert code == 1
    assert "--pretokenized" in err
    code, out, err = run("next", "the", "--model", "m.toml", "--pretokenized", "--count", 10**6)
    assert code == 0, err
    assert sum(float(line.split("\t")[1]) for line in out.splitlines()) == pytest.approx(1, abs=1e-4)
    code, _, err = run("generate", "--model", "m.toml")
    expected = "m.toml: is no network; n-gram models and mixtures are for score, rescore, evaluate, next."
    assert (code, " ".join(err.split())) == (1, f"Error: {expected}")


def test_a_mixture_is_found_through_a_link(run, files, tmp_path):
    """The paths in its file hold from the folder that the link leads to."""
    Path("text.txt").write_text("the cat\n")
    Path("deep/real").mkdir(parents=True)
    Path("link").symlink_to("deep/real")
    code, _, err = run("mix", "text.txt", *files[:2], "--weights", "0.5,0.5", "-o", "link/mix.toml")
    assert code == 0, err
    assert run("score", "text.txt", "--model", "link/mix.toml")[0] == 0
