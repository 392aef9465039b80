"""Adaptation through the command line and from Python: evaluate, score and rescore take the same options."""

import io
import json
import math
import random
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rnnlm
import test_cli
from rnnlm.settings import AdaptationSettings

run = test_cli.run  # a fixture
SENTENCE = test_cli.SENTENCE
Run = Callable[..., tuple[int, str, str]]


def topics(sentences: int = 150, seed: int = 5) -> str:
    """Return a text in which a noun stays for a while, as no model without a memory can know."""
    choose = random.Random(seed).choice
    lines = []
    for number in range(sentences):
        if number % 10 == 0:
            noun = choose(("cat", "dog", "bird", "child", "fish"))
        lines.append(f"the {noun} {choose(('sleeps', 'sings', 'runs', 'eats'))} .\n")
    return "".join(lines)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a text of topics and two small models, one of which carries its state."""
    folder = tmp_path_factory.mktemp("adaptation")
    (folder / "corpus.txt").write_text(test_cli.sentences(300))
    (folder / "topics.txt").write_text(topics())
    options: dict[str, Any] = {"hidden": 8, "epochs": 1, "threads": 1, "pretokenized": True}
    for name in ("apart", "carrying"):
        list(rnnlm.train(folder / "corpus.txt", folder / name, carry_state=name == "carrying", **options))
    return folder


@pytest.fixture
def evaluate(run: Run, folder: Path) -> Callable[..., dict[str, Any]]:
    """Return a function that evaluates the text of topics, and returns what is printed."""

    def call(*options: Any, model: str = "apart") -> dict[str, Any]:
        arguments = ("--model", folder / model, "--threads", 1, "--json", *options)
        code, out, err = run("evaluate", folder / "topics.txt", *arguments)
        assert code == 0, err
        found: dict[str, Any] = json.loads(out)
        return found

    return call


@pytest.mark.parametrize("model", ["apart", "carrying"])
def test_a_text_of_topics_is_predicted_better(evaluate: Callable[..., dict[str, Any]], model: str) -> None:
    """A cache finds what stands in the text again, steps of training learn it; counts stay what they are."""
    static = evaluate(model=model)
    for options in (("--cache", 50), ("--dynamic", 0.05), ("--cache", 50, "--dynamic", 0.05)):
        adapted = evaluate(*options, model=model)
        assert adapted["perplexity"] < 0.97 * static["perplexity"]
        assert adapted["predictions"] == static["predictions"]
    apart = evaluate("--cache", 50, "--adapt-over", "sentence", model=model)
    assert apart["perplexity"] != pytest.approx(evaluate("--cache", 50, model=model)["perplexity"], rel=1e-3)


@pytest.mark.parametrize("options", [("--cache", 50, "--cache-weight", 0), ("--cache", 0), ("--dynamic", 0)], ids=str)
@pytest.mark.parametrize("model", ["apart", "carrying"])
def test_no_weight_is_static_scoring(
    options: tuple[Any, ...], model: str, evaluate: Callable[..., dict[str, Any]], run: Run, folder: Path
) -> None:
    """A weight or a rate of zero changes no bit of what evaluate and score print."""
    assert evaluate(*options, model=model) == evaluate(model=model)
    score = ("score", folder / "topics.txt", "--model", folder / model, "--threads", 1, "--words")
    assert run(*score, *options) == run(*score)


def drawn(sentences: int, seed: int, stay: int = 1) -> list[str]:
    """Draw sentences, each by itself; or such that a noun stays for some of them."""
    choose, lines = random.Random(seed).choices, []
    for number in range(sentences):
        if number % stay == 0:
            (noun,) = choose(("cat", "dog", "bird", "child", "fish"), (16, 8, 4, 2, 1))
        (verb,) = choose(("sleeps", "sings", "runs", "eats"), (16, 8, 4, 2))
        lines.append(f"the {noun} {verb} .")
    return lines


def test_noise_is_not_learned(tmp_path: Path) -> None:
    """Where each sentence is drawn as in training, steps change the mean log-probability by less than its error.

    The same steps gain much more than that where there is something to learn. So the rate is neither lost nor
    three times as large, and a word that was learned before it was scored would show: it gains three times the error.
    """
    (tmp_path / "corpus.txt").write_text("\n".join(drawn(1500, seed=1)))
    options: dict[str, Any] = {"hidden": 8, "epochs": 10, "lr": 0.003, "batch_size": 20, "threads": 1}
    list(rnnlm.train(tmp_path / "corpus.txt", tmp_path / "model", pretokenized=True, **options))
    lm = rnnlm.load(tmp_path / "model")

    def gain_and_error(lines: list[str]) -> tuple[float, float]:
        static, adapted = ([line.total for line in lm.score(lines, **given)] for given in ({}, {"dynamic": 0.01}))
        return statistics.fmean(adapted) - statistics.fmean(static), statistics.stdev(static) / math.sqrt(len(lines))

    gain, error = gain_and_error(drawn(300, seed=9))
    assert abs(gain) < error
    gain, error = gain_and_error(drawn(300, seed=9, stay=10))
    assert gain > 2 * error


def test_score_and_evaluate_agree(run: Run, folder: Path, evaluate: Callable[..., dict[str, Any]]) -> None:
    """The sum of the lines is evaluate's figure, with every kind of adaptation."""
    for options in (("--cache", 20), ("--dynamic", 0.05), ("--cache", 20, "--adapt-over", "sentence")):
        code, out, _ = run("score", folder / "topics.txt", "--model", folder / "apart", "--threads", 1, *options)
        rows = [row.split("\t") for row in out.splitlines()]
        total, predictions = sum(float(row[0]) for row in rows), sum(int(row[1]) for row in rows)
        assert code == 0
        assert 10 ** (-total / predictions) == pytest.approx(evaluate(*options)["perplexity"], rel=1e-5)


def test_blank_lines_end_paragraphs(run: Run, folder: Path, tmp_path: Path) -> None:
    """With --adapt-over paragraph lines behind a blank one have the scores that they have at the beginning."""
    (tmp_path / "text.txt").write_text(f"{topics(20)}\n{topics(20)}")
    options = ("--model", folder / "apart", "--threads", 1, "--cache", 50, "--dynamic", 0.05)
    code, out, _ = run("score", "text.txt", *options, "--adapt-over", "paragraph")
    rows = [float(row.split("\t")[0]) for row in out.splitlines()]
    assert (code, len(rows)) == (0, 41)
    assert rows[21:] == pytest.approx(rows[:20], abs=1e-5)
    code, out, _ = run("score", "text.txt", *options)
    assert [float(row.split("\t")[0]) for row in out.splitlines()][21:] != pytest.approx(rows[:20], abs=1e-3)


def test_weight_and_flatness_are_found(run: Run, folder: Path, evaluate: Callable[..., dict[str, Any]]) -> None:
    """--tune-on says what it has found, which is no worse than what stands there else, and can be given again."""
    arguments = ("evaluate", folder / "topics.txt", "--model", folder / "apart", "--threads", 1, "--json")
    code, out, err = run(*arguments, "--cache", 50, "--tune-on", folder / "topics.txt")
    assert code == 0
    assert err.startswith("Found: --cache-weight 0.")
    tuned = json.loads(out)["perplexity"]
    assert tuned < evaluate("--cache", 50)["perplexity"]
    assert evaluate("--cache", 50, *err.split()[1:])["perplexity"] == pytest.approx(tuned, rel=1e-9)


def test_statistics_come_from_a_text(run: Run, folder: Path, evaluate: Callable[..., dict[str, Any]]) -> None:
    """--dynamic-rms makes steps that help; another decay gives other figures."""
    options = ("--dynamic", 0.0005, "--dynamic-rms", folder / "corpus.txt")
    adapted = evaluate(*options)["perplexity"]
    assert adapted < 0.99 * evaluate()["perplexity"]
    assert evaluate(*options, "--dynamic-decay", 0.05)["perplexity"] != pytest.approx(adapted, rel=1e-6)


@pytest.mark.parametrize("context", ["none", "previous"])
def test_lists_are_read_on_from_the_best(run: Run, folder: Path, tmp_path: Path, context: str) -> None:
    """Rescore learns of the best of each list: the others' scores, and lists of one, are those of the text."""
    lines = topics(30).splitlines()
    (tmp_path / "text.txt").write_text("\n".join(lines))
    lists = "".join(f"u{number} {line}\nu{number} zyzzyva . . . . . . .\n" for number, line in enumerate(lines))
    (tmp_path / "lists").write_text(lists)
    options = ("--model", folder / "carrying", "--threads", 1, "--cache", 50)
    keep = ("--keep-state",) if context == "previous" else ()
    code, out, err = run("rescore", "lists", "--format", "mikolov", "--context", context, *options)
    assert (code, err) == (0, "")
    expected = [float(row.split("\t")[0]) for row in run("score", "text.txt", *options, *keep)[1].splitlines()]
    assert [float(row) for row in out.splitlines()[::2]] == pytest.approx(expected, abs=1e-4)
    code, out, err = run("rescore", "lists", "--format", "mikolov", "--best", *options, "--dynamic", 0.05)
    assert (code, err) == (0, "")
    assert [row.split(" ", 1)[1] for row in out.splitlines()] == lines


def test_each_line_is_answered_at_once(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes from a pipe is scored as it comes, and as it would be from a file."""
    options = ("--model", folder / "carrying", "--threads", 1, "--cache", 20, "--dynamic", 0.05)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(topics().encode())))
    assert run("score", *options)[1] == run("score", folder / "topics.txt", *options)[1]


def test_python_takes_the_same_options(folder: Path) -> None:
    """`perplexity`, `score` and `tune_cache` take the options by their names, and refuse others."""
    lm, text = rnnlm.load(folder / "apart"), folder / "topics.txt"
    found = lm.tune_cache(text, cache=50)
    assert set(found) == {"cache_weight", "cache_flatness"}
    score = lm.perplexity(text, cache=50, **found)
    lines = lm.score(topics(), cache=50, **found)
    assert math.fsum(line.total for line in lines) == pytest.approx(score.log_likelihood, rel=1e-6)
    assert lm.perplexity(text).log_likelihood < score.log_likelihood
    reader = lm.reader(adaptation=AdaptationSettings(cache=5))
    assert reader([]) == []
    with pytest.raises(rnnlm.SettingsError, match="there is no option 'chache'"):
        lm.perplexity(text, chache=50)
    with pytest.raises(rnnlm.SettingsError, match="blank lines"):
        lm.perplexity(text, cache=50, adapt_over="paragraph")


@pytest.mark.parametrize("rms", [(), ("--dynamic-rms", "corpus.txt")])
def test_any_rate_is_survived(run: Run, folder: Path, rms: tuple[str, ...]) -> None:
    """A rate that is far too high ends in bad figures or in one sentence, never in a traceback."""
    Path("corpus.txt").write_text(topics(30))
    code, _, err = run("evaluate", "corpus.txt", "--model", folder / "apart", "--threads", 1, "--dynamic", 1e30, *rms)
    assert "--dynamic" in err
    assert code == 0 or SENTENCE.fullmatch(err)


USAGE = [
    ("evaluate", "--cache-weight", 0.1),
    ("evaluate", "--dynamic-rms", "topics.txt"),
    ("evaluate", "--adapt-over", "sentence"),
    ("evaluate", "--adapt-over", "paragraph", "--cache", 5),
    ("evaluate", "--tune-on", "topics.txt"),
    ("evaluate", "--cache", 5, "--cache-weight", 0.1, "--tune-on", "topics.txt"),
    ("evaluate", "--cache", "-5"),
    ("evaluate", "--cache", 10**9),
    ("evaluate", "--cache", 5, "--cache-weight", 1),
    ("evaluate", "--cache", 5, "--cache-flatness", "nan"),
    ("evaluate", "--dynamic", "inf"),
    ("evaluate", "--dynamic", "-0.1"),
    ("score", "--cache-weight", 0.1),
    ("rescore", "--cache-weight", 0.1),
    ("rescore", "--cache", 5, "--tune", "topics.txt"),
]
FAILURES = [
    ("evaluate", "--cache", 5, "--tune-on", "missing.txt"),
    ("evaluate", "--cache", 5, "--tune-on", "empty.txt"),
    ("evaluate", "--cache", 5, "--tune-on", "."),
    ("evaluate", "--cache", 5, "--tune-on", "bytes.txt"),
    ("evaluate", "--dynamic", 1, "--dynamic-rms", "missing.txt"),
    ("evaluate", "--dynamic", 1, "--dynamic-rms", "empty.txt"),
    ("score", "--cache", 5, "--words", "--rank"),
    ("score", "--cache", 5, "--adapt-over", "paragraph", "--tune-on", "topics.txt"),
]


@pytest.mark.parametrize(("code", "command"), [(2, one) for one in USAGE] + [(1, one) for one in FAILURES], ids=str)
def test_mistakes_are_sentences(code: int, command: tuple[Any, ...], run: Run, folder: Path) -> None:
    """What contradicts itself, has no effect or cannot be read is refused in one sentence."""
    Path("topics.txt").write_text(topics(10))
    Path("empty.txt").write_text("\n")
    Path("bytes.txt").write_bytes(b"the cat \xff\0\n")
    name, *options = command
    found, out, err = run(name, "topics.txt", "--model", folder / "apart", "--threads", 1, *options)
    assert (found, out) == (code, "")
    assert SENTENCE.search(err) or err.rstrip().endswith(".")
    assert err.count("Error:") == 1


def test_a_mixture_does_not_adapt(run: Run, folder: Path) -> None:
    """Mixtures, and models of other programs, are refused by the option's name."""
    Path("topics.txt").write_text(topics(10))
    Path("lists").write_text("u1 the cat sleeps .\n")
    path = folder / "mix.toml"
    models = (folder / "apart", folder / "carrying")
    assert run("mix", "topics.txt", *models, "-o", path, "--threads", 1)[0] == 0
    for command in ("evaluate", "score", "rescore"):
        options = ("lists", "--format", "mikolov") if command == "rescore" else ("topics.txt",)
        code, _, err = run(command, *options, "--model", path, "--threads", 1, "--cache", 5)
        assert (code, "--cache is for a model of ours alone" in err) == (1, True), err


@pytest.mark.parametrize("option", ["--tune-on", "--dynamic-rms"])
def test_standard_input_is_one_text(run: Run, folder: Path, option: str) -> None:
    """The text and what it is tuned on cannot both be standard input."""
    options = ("--cache", 5) if option == "--tune-on" else ("--dynamic", 1)
    code, _, err = run("evaluate", "-", "--model", folder / "apart", *options, option, "-")
    assert code == 2
    assert "Standard input can be read only once" in err
