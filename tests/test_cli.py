"""The command line as a user meets it: what it prints, where, and with which exit code."""

import errno
import gzip
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import click
import numpy as np
import pytest

import rnnlm
from conftest import sentences
from rnnlm.checkpoint import ModelFolder
from rnnlm.cli import COMMANDS, STOP_SIGNALS, commands, main
from rnnlm.cli.options import given
from rnnlm.cli.train import train as train_command
from rnnlm.defaults import ELMAN_RATE, choose
from rnnlm.model import CELLS, RULES
from rnnlm.settings import CHOSEN, RunSettings

ROOT = Path(__file__).parent.parent
SENTENCE = re.compile(r"Error: .*[^.]\.\n\Z")  # what a user's mistake prints: one line, one full stop, nothing else


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Return a function that runs the command line in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    previous = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["rnnlm", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        assert "defect of rnnlm" not in err
        return stop.value.code, out, err

    yield call
    for number, handler in previous.items():
        signal.signal(number, handler)


@pytest.fixture
def corpus(tmp_path):
    """Return a text of 200 short sentences."""
    path = tmp_path / "corpus.txt"
    path.write_text(sentences(200))
    return path


SMALL = ("--pretokenized", "--hidden", 8, "--batch-size", 4, "--bptt", 10, "--epochs", 2, "--threads", 1)


@pytest.fixture
def model(run, corpus, trained):
    """Return the folder of a small model that was trained as SMALL says."""
    return shutil.copytree(trained / "model", Path("model"))


def test_train_tells_what_it_did_and_what_comes_next(run, corpus):
    """Counts, a line an epoch, the best perplexity, words/s, where the model is, sentences of it, what comes next."""
    code, out, err = run("train", corpus, *SMALL)
    assert (code, out) == (0, "")
    assert "190 sentences" in err
    assert "10 sentences" in err
    assert re.search(r"^epoch  2  train +[\d.]+  valid +[\d.]+ \*  lr 1\.0e-03  \d+ s  [\d,]+ words/s$", err, re.M)
    assert re.search(r"^Best validation perplexity [\d.]+ in epoch 2\.$", err, re.M)
    assert re.search(r"^Model: model/best\.npz\nSentences that it makes up:\n(  .+\n){3,}Next, [^\n]+:\n", err, re.M)
    assert re.search(r"(\n  \S*rnnlm (generate|evaluate TEXT|report)){3}\n\Z", err)
    assert max(map(len, err.splitlines())) <= 80
    assert {path.name for path in Path("model").iterdir()} >= {"best.npz", "last.npz", "history.jsonl"}
    records = [json.loads(line) for line in Path("model/history.jsonl").read_text().splitlines()]
    names = {"valid_perplexity", "train_perplexity", "seconds", "words_per_second", "learning_rate", "epoch"}
    assert [record["epoch"] for record in records] == [1, 2]
    assert all(names <= set(record) for record in records)


def test_a_model_is_never_overwritten_unasked(run, corpus, model):
    """Training into a folder that holds a model is refused, with both ways out named; --overwrite replaces it."""
    before = (model / "best.npz").read_bytes()
    code, _, err = run("train", corpus, *SMALL)
    assert code == 1
    assert "--resume" in err
    assert "--overwrite" in err
    assert SENTENCE.fullmatch(err)
    assert (model / "best.npz").read_bytes() == before
    assert run("train", corpus, *SMALL, "--overwrite", "--seed", 9)[0] == 0
    assert (model / "best.npz").read_bytes() != before


def test_a_failed_overwrite_loses_nothing(run, model, tmp_path):
    """A text that cannot be used leaves the old model as it is, --overwrite or not."""
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    before = {path.name: path.read_bytes() for path in model.glob("*.npz")}
    code, _, err = run("train", empty, *SMALL, "--overwrite")
    assert code == 1
    assert SENTENCE.fullmatch(err)
    assert {path.name: path.read_bytes() for path in model.glob("*.npz")} == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no words"),
        (b"\n \n\n", "has no words"),
        (b"good\nbad \xff byte\n", "line 2.*--encoding"),
        (b"\x00\x01\x02\x00binary", "line 1"),
        (b"a b\nc <s> d\n", "line 2.*<s>"),
        (b"\x1f\x8bnot gzip", "gzip"),
        (None, "no such file"),
    ],
)
def test_a_text_that_cannot_be_used_is_named_in_one_sentence(run, tmp_path, content, message):
    """File, line and remedy, exit code 1, and no folder is left behind."""
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    code, out, err = run("train", path, *SMALL)
    assert (code, out) == (1, "")
    assert SENTENCE.fullmatch(err)
    assert "text.txt" in err
    assert re.search(message, err)
    assert not Path("model").exists()


def test_a_text_is_called_by_the_name_that_was_given(run):
    """A message names a file as the user did, while the model keeps where it is."""
    _, _, err = run("train", "missing.txt", *SMALL)
    assert err.startswith("Error: missing.txt: ")


def test_a_folder_is_no_text(run, tmp_path):
    """A directory where a text should be is told apart from a missing file."""
    code, _, err = run("train", tmp_path, *SMALL)
    assert code == 1
    assert "directory" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "x", "--hidden", "-3"),
        ("train", "x", "--no-such-option"),
        ("train", "x", "--lr", "nan-ish"),
        ("train", "x", "--save-every", "soon"),
        ("train",),
        ("generate", "--temperature", "-1"),
        ("no-such-command",),
    ],
)
def test_wrong_usage_exits_with_2(run, arguments):
    """Options that do not exist or cannot be are refused before anything is read."""
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "Error" in err


@pytest.mark.parametrize("command", ["generate", "evaluate", "info", "gradcheck"])
@pytest.mark.parametrize("kind", ["missing", "garbage", "truncated", "text"])
def test_a_model_that_cannot_be_used_is_named_in_one_sentence(run, model, corpus, command, kind):
    """Missing, damaged, cut short or no model at all: one sentence that names it, exit code 1."""
    path = Path("broken.npz")
    if kind == "garbage":
        path.write_bytes(b"PK\x03\x04" + bytes(range(256)))
    elif kind == "truncated":
        path.write_bytes((model / "best.npz").read_bytes()[:-100])
    elif kind == "text":
        path.write_text("no model")
    code, out, err = run(command, "--model", path, *([corpus] if command == "evaluate" else []))
    assert (code, out) == (1, "")
    assert SENTENCE.fullmatch(err)
    assert "broken.npz" in err


def test_config_fills_defaults_and_the_command_line_wins(run, corpus):
    """A TOML file sets options; one given on the command line is stronger."""
    Path("small.toml").write_text("pretokenized = true\nhidden = 6\nepochs = 1\nbatch_size = 4\nthreads = 1\n")
    assert run("train", corpus, "--config", "small.toml", "--epochs", 2)[0] == 0
    _, out, _ = run("info", "--json")
    assert '"hidden": 6' in out
    assert len(Path("model/history.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("hiden = 3", "no setting 'hiden'; did you mean hidden?"),
        ("learning_rate = 3", "no setting 'learning_rate'; it is called lr here"),
        ("streams = 3", "no setting 'streams'; it is called batch-size here"),
        ("xyzzy = 3", "no setting 'xyzzy'; rnnlm train --help lists them"),
        ("hidden = 'many'", "hidden: 'many' is not a whole number"),
        ("hidden = true", "hidden is True, and takes a number"),
        ("lowercase = 1", "lowercase is 1, and takes true or false"),
        ("hidden = 5.7", "hidden: 5.7 is not a whole number"),
        ("hidden = 2020-01-01", "and takes a number"),
        ("hidden = inf", "hidden: inf is not a whole number"),
        ("valid = [1, 2]", "valid: 1 is not a text"),
        ("model = 5", "model: 5 is not a text"),
        ("vocab = 5", "vocab: 5 is not a path"),
        ("seed = " + "9" * 5000, "is not a TOML file"),
        ("a = " + "[" * 5000 + "]" * 5000, "is not a TOML file"),
        ("save-every = '" + "9" * 5000 + "'", "it takes a number of windows"),
        ("save-every = '5x'", "save-every: --save-every is '5x'; it takes a number of windows"),
        ("resume = true", "resume stands on the command line only"),
        ("hidden = ", "is not a TOML file"),
        ("[train]\nhidden = 3", "no setting 'train'"),
    ],
)
def test_a_wrong_config_is_named(run, corpus, line, message):
    """An unknown key comes with what it is called here, if that is known; a wrong value with file and key. Code 2."""
    Path("wrong.toml").write_text(line)
    code, _, err = run("train", corpus, "--config", "wrong.toml")
    assert code == 2
    assert "wrong.toml" in err
    assert message in err
    assert err.endswith((".\n", "?\n"))
    assert len(err) < 500


RECIPES = sorted(path.name for path in (ROOT / "configs").glob("*.toml"))


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_accepted(run, corpus, name):
    """Every file in configs/ begins a training of the network that it names, without a complaint or a warning."""
    small = ("--hidden", 4, "--epochs", 1, "--clusters", 1, "--decay-from", 0)  # or the rate would never fall
    code, _, err = run("train", corpus, "--config", ROOT / "configs" / name, *small)
    assert (code, "Warning" in err) == (0, False), err
    asked, made = tomllib.loads((ROOT / "configs" / name).read_text()), json.loads(run("info", "--json")[1])
    shape = {key: value for key, value in asked.items() if key in ("cell", "layers", "tied", "carry-state")}
    assert {key: made["model"][key.replace("-", "_")] for key in shape} == shape
    rates = {key: value for key, value in asked.items() if key in ("lr", "clip", "dropout", "batch-size", "bptt")}
    assert {key: made["training"][key.replace("-", "_")] for key in rates} == rates


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in ("demo.toml", "small.toml")])
def test_recipes_leave_nothing_to_the_size_of_the_text(name):
    """A recipe is the same training on any text, now and when defaults have changed."""
    with (ROOT / "configs" / name).open("rb") as file:
        options = {key.replace("-", "_"): value for key, value in tomllib.load(file).items()}
    settings = RunSettings.of("text.txt", options)
    assert set(settings.chosen) <= {"lr", "rate_power", "dropout_state"}
    assert settings.network == choose(settings, 10**5, 10_000).network
    assert choose(settings, 10**4, 10_000) == choose(settings, 10**7, 10_000)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "-hidden", 60), "There is no option -hidden; it is --hidden, with two dashes."),
        (("train", "-nhid", 60), "There is no option -nhid; it is called --hidden here."),
        (("score", "-debug", 2), "There is no option -debug; it is called --level here."),
        (("next", "the", "cat"), "(cat); put a text of several words in quotes."),
        (("info", "model"), "(model); name a model with --model."),
    ],
)
def test_what_other_programs_take_is_understood(run, arguments, message):
    """An option with one dash, a text without quotes, a model without its option: the message says what to type."""
    code, _, err = run(*arguments)
    assert code == 2
    assert message in " ".join(err.split())


def test_recipes_go_by_their_names(run, corpus):
    """--config takes the name of a shipped recipe; a file of that name in this folder is ./tutorial."""
    code, _, err = run("train", corpus, "--config", "tutorial", "--hidden", 4, "--epochs", 1)
    assert code == 0, err
    assert json.loads(run("info", "--json")[1])["training"]["lr"] == 0.005
    Path("tutorial").write_text("lr = 0.5\n")
    code, _, err = run("train", corpus, "--config", "./tutorial", "--hidden", 4, "--epochs", 1, "--overwrite")
    assert code == 0, err
    assert json.loads(run("info", "--json")[1])["training"]["lr"] == 0.5
    code, _, err = run("train", corpus, "--config", "tutoral", "--overwrite")
    assert code == 2
    assert "tutoral: cannot be read" in err
    assert "or a recipe: tutorial." in " ".join(err.split())
    assert "mikolov2010, " in " ".join(run("train", corpus, "--config", "x", "--overwrite")[2].split())
    listed = "".join(run("train", "--help")[1].split())  # a name may be broken at a hyphen
    assert all(name.removesuffix(".toml") in listed for name in RECIPES)


def test_a_carried_model_scores_sentences_by_themselves(run, corpus):
    """--no-carry-state gives other figures than the state that is carried, the same as those of `score`."""
    code, _, err = run("train", corpus, *SMALL, "--cell", "lstm")
    assert code == 0, err
    figures = {}
    for options in ((), ("--carry-state",), ("--no-carry-state",)):
        figures[options] = json.loads(run("evaluate", corpus, *options, "--json")[1])["perplexity"]
    assert figures[()] == figures[("--carry-state",)] != figures[("--no-carry-state",)]
    rows = [line.split("\t") for line in run("score", corpus)[1].splitlines()]
    total, predictions = sum(float(row[0]) for row in rows), sum(int(row[1]) for row in rows)
    assert 10 ** (-total / predictions) == pytest.approx(figures[("--no-carry-state",)], rel=1e-5)


def test_a_switch_of_a_recipe_can_be_unset(run, corpus):
    """What a file sets, --no-... unsets."""
    Path("tied.toml").write_text("tied = true\ncell = 'lstm'\n")
    code, _, err = run("train", corpus, *SMALL, "--config", "tied.toml", "--no-tied")
    assert code == 0, err
    assert json.loads(run("info", "--json")[1])["model"]["tied"] is False


def test_the_example_of_the_readme_is_accepted(run, corpus):
    """The network that README.md asks for is one."""
    (example,) = re.findall(r"^rnnlm train corpus\.txt (--cell .*)$", (ROOT / "README.md").read_text("utf-8"), re.M)
    code, _, err = run("train", corpus, *example.split(), "--hidden", 4, "--epochs", 1, "--pretokenized")
    assert code == 0, err


def test_recipes_convert_the_rates_of_others():
    """A rate for a mean over streams or positions, and a norm of a sum over steps, are those for our sum and mean."""
    read = {name: tomllib.loads((ROOT / "configs" / name).read_text()) for name in RECIPES}
    for name in ("zaremba-small.toml", "zaremba-medium.toml"):
        assert read[name]["lr"] * read[name]["batch-size"] == pytest.approx(1)
        assert read[name]["clip"] * read[name]["bptt"] == pytest.approx(5, rel=1e-3)
    example = read["word-language-model.toml"]
    assert example["lr"] * example["batch-size"] * example["bptt"] == pytest.approx(20, rel=2e-3)
    for name in ("tutorial.toml", "mikolov2010.toml", "word-language-model.toml", "zaremba-small.toml"):
        assert read[name]["rate-power"] == 0


def test_defaults_are_the_same_in_library_and_command_line():
    """A run with no option has the settings that a Python user gets who names a text and nothing else."""
    context = train_command.make_context("train", ["corpus.txt"])
    assert given(context) == {"corpus": ("corpus.txt",)}
    assert RunSettings.of("corpus.txt", {}) == RunSettings(("corpus.txt",), chosen=CHOSEN)
    for name, value in context.params.items():
        groups = [RunSettings(("corpus.txt",)), *(group() for group in RunSettings.groups().values())]
        for owner in groups:
            if hasattr(owner, name) and name != "corpus":
                assert getattr(owner, name) == value, name


@pytest.mark.parametrize(
    ("options", "predictions", "streams"),
    [({}, 1_000, 8), ({}, 929_589, 64), ({"layers": 2}, 929_589, 20), ({"cell": "lstm"}, 929_589, 20)],
)
def test_default_batch_sizes_leave_steps_enough(options, predictions, streams):
    """A short text is read by a few streams, a long one by 32, or by 20 with several layers or tied tables."""
    chosen = choose(RunSettings.of("text.txt", options), predictions, 10_000)
    assert chosen.training.batch_size == streams


def test_between_them_an_epoch_has_200_steps():
    """So a text of a fifth of the treebank has 31 streams."""
    streams = choose(RunSettings.of("text.txt", {}), 219_600, 8_000).training.batch_size
    assert 219_600 / (35 * streams) == pytest.approx(200, rel=0.05)


def test_a_run_begins_with_another_model(run, corpus, model):
    """--from gives weights and vocabulary; what they decide cannot be given too, and --resume needs no --from."""
    other = Path("other.txt")
    other.write_text(sentences(50, seed=2) + "the zebra sleeps .\n")
    code, _, err = run("train", other, "--from", model, "--model", "tuned", "--epochs", 1, "--threads", 1)
    assert code == 0, err
    words = [
        json.loads(run("info", "--json", "--model", folder)[1])["vocabulary"]["words"] for folder in (model, "tuned")
    ]
    assert words[0] == words[1]
    assert "began with" in run("info", "--model", "tuned")[1]
    code, _, err = run("train", other, "--from", model, "--model", "t2", "--hidden", 9)
    assert (code, "--hidden has no effect beside --from, whose model decides it" in err) == (2, True)
    code, _, err = run("train", other, "--from", model, "--model", "t2", "--dropout-hidden", 0.5)
    assert (code, "--dropout-hidden is between layers and has no effect on one" in err) == (1, True)
    assert not Path("t2").exists()
    assert run("train", "--resume", "--model", "tuned", "--epochs", 2, "--threads", 1)[0] == 0
    code, _, err = run("train", "--resume", "--model", "tuned", "--from", model)
    assert (code, "--from begins with one" in err) == (2, True)


def test_resume_asks_for_something_to_resume(run, corpus):
    """--resume where nothing was trained says so."""
    code, _, err = run("train", corpus, *SMALL, "--resume")
    assert code == 1
    assert "no training to resume" in err


def test_resume_goes_on_for_more_epochs(run, model):
    """A finished run goes on when it is given more epochs, without naming the text again."""
    code, _, err = run("train", "--resume", "--epochs", 3)
    assert code == 0
    assert "epoch  3" in err
    assert len(Path("model/history.jsonl").read_text().splitlines()) == 3


def test_resume_refuses_other_settings_and_other_texts(run, model, tmp_path):
    """What would make it another run is refused, with the option or the file named."""
    code, _, err = run("train", "--resume", "--hidden", 9)
    assert code == 1
    assert "--hidden" in err
    other = tmp_path / "other.txt"
    other.write_text(sentences(50, seed=2))
    code, _, err = run("train", other, "--resume", "--epochs", 3)
    assert code == 1
    assert "other.txt" in err


def test_resume_finds_the_text_again_when_the_cache_is_gone(run, corpus):
    """Without the encoded text beside the model, the text named at first is read anew; changed or gone, it is named."""
    run("train", corpus, *SMALL)
    for path in Path("model").glob("encoded*"):
        shutil.rmtree(path)
    assert run("train", "--resume", "--epochs", 3)[0] == 0
    for path in Path("model").glob("encoded*"):
        shutil.rmtree(path)
    corpus.write_text(sentences(300))
    code, _, err = run("train", "--resume", "--epochs", 4)
    assert code == 1
    assert "corpus.txt" in err
    assert SENTENCE.fullmatch(err)


def test_standard_input_and_gzip_give_the_same_model(run, corpus, tmp_path, monkeypatch):
    """A text is the same text from a file, compressed, or through a pipe."""
    compressed = tmp_path / "corpus.txt.gz"
    compressed.write_bytes(gzip.compress(corpus.read_bytes()))
    assert run("train", corpus, *SMALL, "--model", "plain")[0] == 0
    assert run("train", compressed, *SMALL, "--model", "gzip")[0] == 0
    with corpus.open() as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        assert run("train", "-", *SMALL, "--model", "pipe")[0] == 0
    weights = [np.load(f"{name}/best.npz")["parameters/V"].tobytes() for name in ("plain", "gzip", "pipe")]
    assert weights[0] == weights[1] == weights[2]


def test_evaluate_prints_its_figures_as_json(run, model, corpus):
    """The figures that the documentation names, and no others missing."""
    code, out, _ = run("evaluate", corpus, "--json")
    figures = json.loads(out)
    assert code == 0
    assert figures["predictions"] == figures["words"] + figures["sentences"] == 800 + 200 + sentences(200).count("it")
    assert figures["perplexity"] == pytest.approx(2 ** figures["bits_per_prediction"])
    assert set(figures) >= {"perplexity_excluding_unknown", "unknown"}


def test_generate_is_bounded_and_repeatable(run, model):
    """The same seed gives the same sentences on any number of threads, none longer than asked."""
    first = run("generate", "--count", 5, "--seed", 3, "--max-words", 4, "--tokens")
    again = run("generate", "--count", 5, "--seed", 3, "--max-words", 4, "--tokens", "--threads", 2)
    assert first[:2] == again[:2]
    assert first[0] == 0
    assert len(first[1].splitlines()) == 5
    assert all(len(line.split()) <= 4 for line in first[1].splitlines())


def help_of(name):
    """Return the help of a command, in the context that it has on the command line: click keeps what it makes there."""
    above = click.Context(commands, info_name="rnnlm", **commands.context_settings)
    command = commands.get_command(above, name)
    return command.get_help(click.Context(command, parent=above, info_name=name))


def test_help_ends_with_an_example():
    """Every command's help closes with a command that can be typed."""
    for name in COMMANDS:
        text = help_of(name)
        assert re.search(rf"Example:\n(\s+rnnlm .*\n)*\s+.*\brnnlm {name}\b.*\Z", text.rstrip()), name


def test_help_of_all_commands_shows_its_example_as_it_is_typed():
    """The example of `rnnlm --help` stands in lines of its own, without marks; no help lists arguments as options."""
    text = commands.get_help(click.Context(commands, info_name="rnnlm", **commands.context_settings))
    assert text.endswith("  Example:\n    rnnlm train corpus.txt\n    rnnlm generate")
    assert "\\b" not in text
    for name in COMMANDS:
        assert not re.search(r"^  \[?(CORPUS|FILE)", help_of(name), re.M), name


def test_help_tells_the_rates_that_optimizers_begin_with():
    """The help of --lr, which cannot load the model's file, says what stands there; momentum begins as sgd does."""
    options = commands.get_command(click.Context(commands), "train").params
    (parameter,) = (option for option in options if option.name == "lr")
    sgd, adagrad, adam = (RULES[name].learning_rate for name in ("sgd", "adagrad", "adam"))
    assert RULES["momentum"].learning_rate == sgd
    gated = f"{ELMAN_RATE:g} sgd, less on long texts, or {sgd:g} with gru and lstm, both times 1 - momentum"
    assert parameter.show_default == f"{gated}; {adagrad:g} adagrad, {adam:g} adam"


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_the_page_of_the_command_line_is_true(run, monkeypatch, name):
    """docs/cli.md has what each command prints, to the letter."""
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run(*filter(None, [name]), "--help")
    title = f"rnnlm {name}".rstrip()
    assert code == 0
    assert f"\n## `{title}`\n\n```\n{out}```\n" in (ROOT / "docs/cli.md").read_text("utf-8")


def test_help_loads_neither_numpy_nor_nltk():
    """`rnnlm --help` imports click and the standard library, whatever the commands need."""
    code = "import sys, rnnlm.cli as c\ntry: c.commands(['--help'])\nexcept SystemExit: pass\n"
    code += "print(sorted({'numpy', 'nltk', 'tqdm', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


def test_a_full_disk_keeps_the_model_that_was_there(run, corpus, model, monkeypatch):
    """--overwrite removes nothing before the new model is on the disk."""
    before = {path.name: path.read_bytes() for path in model.glob("*.npz")}

    def full(file, **_arrays):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    code, _, err = run("train", corpus, *SMALL, "--overwrite", "--seed", 9)
    assert code == 1
    assert "no space left" in err
    assert {path.name: path.read_bytes() for path in model.glob("*.npz")} == before


def test_two_runs_do_not_share_a_folder(run, corpus, model):
    """While one trains, another is refused and touches nothing; the folder is free again afterwards."""
    with ModelFolder(model).held():
        code, _, err = run("train", "--resume", "--epochs", 3)
    assert code == 1
    assert "another rnnlm is training here" in err
    assert run("train", "--resume", "--epochs", 3)[0] == 0


def test_a_wrong_text_does_not_replace_the_encoded_one(run, corpus, tmp_path, monkeypatch):
    """A model trained from standard input can still be resumed after a refused --resume with another text."""
    with corpus.open() as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        assert run("train", "-", *SMALL)[0] == 0
    other = tmp_path / "other.txt"
    other.write_text(sentences(50, seed=2))
    assert run("train", other, "--resume", "--epochs", 3)[0] == 1
    assert run("train", "--resume", "--epochs", 3)[0] == 0


def test_a_text_from_standard_input_that_is_gone_is_asked_for(run, corpus, monkeypatch):
    """Without its encoded form, a text that came through a pipe is asked for again, and then accepted."""
    for attempt in ("first", "again"):
        with corpus.open() as stream:
            monkeypatch.setattr(sys, "stdin", stream)
            if attempt == "first":
                assert run("train", "-", *SMALL)[0] == 0
                shutil.rmtree("model/encoded-train")
                code, _, err = run("train", "--resume", "--epochs", 3)
                assert code == 1
                assert "give it again" in err
            else:
                assert run("train", "-", "--resume", "--epochs", 3)[0] == 0


def test_a_finished_run_says_so_when_it_is_resumed(run, model):
    """Resumed without more epochs, a finished run names what would let it go on."""
    code, _, err = run("train", "--resume")
    assert code == 1
    assert "training is finished, 2 epochs done; give --epochs a higher number" in err


def test_a_run_that_patience_has_ended_names_it(run, corpus):
    """More epochs alone would not let it go on."""
    assert (
        run("train", corpus, *SMALL, "--epochs", 9, "--min-improvement", 0.99, "--patience", 1, "--decay-from", 1)[0]
        == 0
    )
    code, _, err = run("train", "--resume", "--epochs", 20)
    assert code == 1
    assert "for 1 epoch; give --patience a higher number" in err


def test_a_rate_that_has_fallen_is_named_when_a_run_is_resumed(run, corpus):
    """More epochs at a hundredth of the rate are not what a longer training would be."""
    fall = ("--decay-from", 1, "--lr-decay", 10, "--min-improvement", 0)
    for epochs, said in ((2, True), (1, False)):
        assert run("train", corpus, *SMALL, "--overwrite", "--epochs", epochs, *fall)[0] == 0
        code, _, err = run("train", "--resume", "--epochs", 3)
        assert (code, "with which little is learned; for a longer training begin anew" in " ".join(err.split())) == (
            0,
            said,
        )


def test_a_run_that_replaces_damaged_files_can_be_resumed(run, model, corpus):
    """What could not be read when it began is no other run's to keep."""
    Path("model/best.npz").write_bytes(Path("model/best.npz").read_bytes()[:1000])
    for event in rnnlm.train(corpus, "model", overwrite=True, pretokenized=True, hidden=4, epochs=2, threads=1):
        if isinstance(event, rnnlm.Progress):
            break
    assert Path("model/new.npz").exists()
    code, _, err = run("train", "--resume")
    assert code == 0, err
    assert run("evaluate", corpus)[0] == 0


def test_a_validation_text_that_has_moved_is_given_with_its_option(run, model, corpus):
    """As the remedy says, where the training text is named too."""
    Path("valid.txt").write_text(sentences(30))
    assert run("train", corpus, *SMALL, "--valid", "valid.txt", "--overwrite")[0] == 0
    Path("valid.txt").rename("moved.txt")
    code, _, err = run("train", corpus, "--resume", "--epochs", 3)
    assert code == 1
    assert "valid.txt: the text is not there any more, and texts are read again where one is named" in err
    assert "rnnlm train --valid TEXT --resume --model model" in " ".join(err.split())
    assert run("train", corpus, "--valid", "moved.txt", "--resume", "--epochs", 3)[0] == 0


def test_a_list_of_words_that_has_moved_is_given_with_its_option(run, model, corpus):
    """Where it is now is no other option; a list of other words is refused, though the encoded text is there."""
    words = "\n".join(sorted(set(sentences(200).split()))[:12])
    Path("words.txt").write_text(words)
    assert run("train", corpus, *SMALL, "--vocab", "words.txt", "--overwrite")[0] == 0
    Path("words.txt").rename("moved.txt")
    Path("other.txt").write_text(words.partition("\n")[2])
    code, _, err = run("train", corpus, "--resume", "--epochs", 3)
    assert code == 1
    assert "words.txt: cannot be read" in err
    assert "name another file with --vocab" in " ".join(err.split())
    code, _, err = run("train", "--resume", "--epochs", 3, "--vocab", "other.txt")
    assert code == 1
    assert "not cut into the same words" in " ".join(err.split())
    assert run("train", corpus, "--resume", "--epochs", 3, "--vocab", "moved.txt")[0] == 0


def test_the_share_of_the_validation_text_is_that_of_its_sentences(run, tmp_path):
    """One of ten sentences is a tenth, whatever fraction was asked for."""
    Path("ten.txt").write_text(sentences(10))
    _, _, err = run("train", "ten.txt", "--lines", "--epochs", 1, "--hidden", 4)
    assert "(last 10% of the corpus)" in " ".join(err.split())


def test_a_log_that_cannot_be_written_is_named(run, corpus, monkeypatch):
    """A loop of links, a full disk; and a name of no encoding on the command line stays a name."""
    Path("loop").symlink_to("loop")
    code, _, err = run("train", corpus, *SMALL, "--log", "loop")
    assert (code, "Error: loop: cannot be written" in err) == (1, True)
    with monkeypatch.context() as patch:
        full = SimpleNamespace(write=Mock(side_effect=OSError(errno.ENOSPC, "No space left")), close=Mock())
        patch.setattr(os, "fdopen", lambda number, *_, **__: os.close(number) or full)
        code, _, err = run("train", corpus, *SMALL, "--log", "full")
    assert (code, "Error: full: cannot be written (no space left" in err) == (1, True)
    monkeypatch.setattr(sys, "argv", ["rnnlm", "train", "caf\udce9.txt"])
    code, _, err = run("train", "caf\udce9.txt", "--log", "new.log")
    assert (code, "defect" in err) == (1, False)
    assert not Path("new.log").exists()


def test_resume_with_a_wrong_validation_text_is_refused(run, model, tmp_path):
    """--valid on --resume is read, not ignored."""
    other = tmp_path / "other.txt"
    other.write_text(sentences(50, seed=2))
    code, _, err = run("train", "--resume", "--valid", other, "--epochs", 3)
    assert code == 1
    assert SENTENCE.fullmatch(err)


def test_failed_runs_leave_no_folders(run, tmp_path):
    """A model's folder and the parents that were made for it go when nothing was trained."""
    assert run("train", tmp_path / "missing.txt", "--model", "a/b/c")[0] == 1
    assert not Path("a").exists()


@pytest.mark.parametrize(
    "option", ["--lr", "--clip", "--weight-decay", "--lr-decay", "--min-improvement", "--dropout-weights", "--momentum"]
)
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_no_option_takes_what_is_no_finite_number(run, corpus, option, value):
    """Not-a-number and infinity are wrong usage."""
    assert run("train", corpus, option, value)[0] == 2


def test_config_sets_several_texts(run, corpus):
    """An option that may be given several times is a list, or one text, in a config."""
    Path("valid.txt").write_text(sentences(20, seed=3))
    for value in ('"valid.txt"', '["valid.txt", "valid.txt"]'):
        Path("c.toml").write_text(f"valid = {value}")
        code, _, err = run("train", corpus, *SMALL, "--config", "c.toml", "--overwrite")
        assert code == 0, err


def test_a_network_is_what_is_asked_for(run, corpus):
    """The kind of cell, layers, sizes, tied tables and each rate of dropout come to the model and its training."""
    rates = {"dropout": 0.1, "dropout_hidden": 0.2, "dropout_output": 0.3, "dropout_weights": 0.4}
    options = [part for name, rate in rates.items() for part in ("--" + name.replace("_", "-"), rate)]
    code, _, err = run("train", corpus, *SMALL, "--cell", "gru", "--layers", 2, "--embedding", 6, *options)
    assert code == 0, err
    report = json.loads(run("info", "--json")[1])
    assert {name: report["training"][name] for name in rates} == rates
    assert report["training"]["dropout_input"] is None
    shapes = {"U": 6, "X1": 6, "W1": 8, "X2": 8, "W2": 8}
    assert {name: report["model"]["shapes"][name][1] for name in shapes} == shapes
    assert report["model"]["shapes"]["b2"] == [32]
    assert run("train", corpus, *SMALL, "--cell", "lstm", "--tied", "--overwrite")[0] == 0
    assert "U" not in json.loads(run("info", "--json")[1])["model"]["shapes"]


@pytest.mark.parametrize("tables", [("--tied",), ("--embedding", 6, "--carry-state", "--bptt-truncate", 3)], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_every_command_takes_every_cell(run, corpus, cell, tables):
    """A model of two layers is described, continued, scored, checked and begun with; threads change nothing."""
    code, _, err = run("train", corpus, *SMALL, "--cell", cell, "--layers", 2, *tables, "--dropout", 0.1)
    assert code == 0, err
    _, out, _ = run("info")
    rows = dict(re.findall(r"^  (\S(?: ?\S)*)  +(\S.*)$", out, re.M))
    assert max(len(line) for line in out.splitlines() if "corpus.txt" not in line) <= 80
    assert (rows["cell"], rows["layers"], rows["hidden units"]) == (cell, "2", "8 in each layer")
    assert rows["embedding"] == ("8, input and output tied" if tables == ("--tied",) else "6")
    assert (rows["dropout"], rows["dropout weights"]) == ("0.1", "0")
    assert "None" not in out
    report = json.loads(run("info", "--json")[1])["model"]
    assert (report["cell"], report["layers"], report["tied"]) == (cell, 2, tables == ("--tied",))
    assert report["embedding"] == (8 if report["tied"] else 6)
    for command in (("generate", "--count", 9, "--seed", 3, "--prompt", "the"), ("evaluate", corpus, "--json")):
        one, two = (run(*command, "--threads", threads) for threads in (1, 2))
        assert one[0] == 0, one
        assert one[1] == two[1] != ""
    code, out, err = run("gradcheck", "--model", "model", "--directions", 2)
    assert (code == 0) or cell == "relu", out + err  # of relu a difference may go across its kink
    code, _, err = run("train", corpus, "--from", "model", "--model", "tuned", "--epochs", 1, "--threads", 1)
    assert code == 0, err
    assert json.loads(run("info", "--json", "--model", "tuned")[1])["model"] == report


def test_momentum_goes_with_sgd(run, corpus):
    """An option that would have no effect is refused."""
    code, _, err = run("train", corpus, *SMALL, "--optimizer", "adam", "--momentum", 0.5)
    assert (code, "Error: --momentum goes with --optimizer sgd" in err) == (2, True)
    assert not Path("model").exists()


def test_divergence_before_any_evaluation_leaves_no_model(run, corpus):
    """A model that has learned nothing is not left for generate to use."""
    code, _, err = run("train", corpus, *SMALL, "--lr", 1000, "--rate-power", 0, "--clip", 0)
    assert code == 1
    assert "diverged" in err
    assert not Path("model").exists()


def test_options_by_other_names_are_named(run, corpus):
    """Who comes from another program, or from an older line, is told what it is called here; others get no guess."""
    for option, message in [
        ("--learning-rate", "There is no option --learning-rate; it is called --lr here."),
        ("--streams", "it is called --batch-size here."),
        ("--window", "it is called --bptt here."),
        ("--truncate", "it is called --bptt-truncate here."),
        ("--nlayers", "it is called --layers here."),
        ("--emsize", "it is called --embedding here."),
        ("--epoch", "did you mean --epochs?"),
        ("--xyzzy", "There is no option --xyzzy; rnnlm train --help lists them."),
    ]:
        code, _, err = run("train", corpus, option, 3)
        assert code == 2
        assert err.endswith(f"{message}\n"), err


@pytest.mark.parametrize("model", ["", "new.npz\0"])
def test_a_model_needs_a_name(run, corpus, model):
    """An empty name is not the folder that we are in."""
    before = sorted(Path().iterdir())
    code, _, err = run("train", corpus, *SMALL, "--model", model)
    assert code in (1, 2)
    assert "Error: " in err
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--lr", "1e29", "--clip", 0), "diverged"),
        (("--lr", "1e29", "--optimizer", "adam"), "diverged"),
        (("--lr", "1e34"), "is not a number above 0"),
        (("--weight-decay", "1e300"), "is not a number from 0"),
        (("--encoding", "idna"), "there is no text encoding"),
        (("--seed", "9" * 5000), "is not a whole number"),
        (("--valid-fraction", 0.2, "--valid", "corpus.txt"), "--valid-fraction has no effect beside --valid"),
        (("--vocab", "w", "--min-count", 3), "--min-count has no effect beside --vocab"),
        (("--bptt-truncate", 10), "--bptt-truncate 10 has no effect in windows of --bptt 10 steps"),
        (("--optimizer", "adam", "--rate-power", 0.3), "--rate-power goes with --optimizer sgd"),
        (("--tied", "--embedding", 9), "--tied has one table .* --embedding is 9 where --hidden is 8; leave"),
        (("--dropout-hidden", 0.3), "--dropout-hidden is between layers and has no effect on one"),
        (("--vocab", "missing.txt"), "missing.txt: cannot be read"),
        (("--log", "missing/log"), "missing/log: cannot be written"),
    ],
)
def test_what_cannot_be_is_one_sentence(run, corpus, options, message):
    """Rates beyond float32, options without effect and files that are none: a sentence, no warning, no model."""
    code, _, err = run("train", "corpus.txt", *SMALL, *options)
    assert code in (1, 2)
    assert re.search(message, err)
    assert "Warning" not in err
    assert len(err.splitlines()[-1]) < 350
    assert err.endswith(".\n")
    assert not Path("model").exists()


def test_options_without_effect_are_refused_by_generate(run, model):
    """Nothing is drawn at temperature 0, so there is nothing to seed or to narrow."""
    for options in (("--top-k", 3), ("--top-p", 0.5), ("--seed", 3)):
        code, _, err = run("generate", "--temperature", 0, *options)
        assert (code, f"so {options[0]} has no effect" in err) == (2, True)
    code, out, err = run("generate", "--temperature", 0, "--count", 2)
    assert (code, err, len(set(out.splitlines()))) == (0, "", 1)


def test_a_prompt_is_cut_like_a_text(run, corpus):
    """The last sentence of a prompt is continued, its last word known without the period that ended the first."""
    corpus.write_text("Speak to me. Where is the cat? Speak to the cat. Where is me? " * 20)
    assert run("train", corpus, "--epochs", 1, "--hidden", 4)[0] == 0
    code, out, err = run("generate", "--prompt", "Speak to me. Where is", "--count", 3, "--seed", 1)
    assert code == 0
    assert "does not know" not in err
    assert all(line.startswith("Where is") for line in out.splitlines())


def test_warnings_say_what_is_wrong_with_the_text(run, corpus):
    """Unknown words that nothing teaches, most words unknown, a text validated on itself, odd sentences and words."""

    def said(*options):
        """Return what a training says, its warnings as one line."""
        return re.sub(r"(Warning: .*?\.\n)", lambda one: " ".join(one[1].split()) + "\n", run(*options)[2], flags=re.S)

    small = ("--hidden", 4, "--epochs", 1, "--threads", 1, "--overwrite")
    Path("valid.txt").write_text("the zebra sleeps .\n" * 5)
    err = said("train", corpus, "--pretokenized", "--valid", "valid.txt", *small)
    assert "Warning: the validation text has 5 unknown words, and training has none to learn from" in err
    assert "give a --vocab-size below 15." in err
    assert re.search(r"^epoch  1 .*  known [\d.]+  lr", err, re.M)
    err = said("train", corpus, "--pretokenized", "--valid", corpus, *small)
    assert "Warning: the validation text is the training text" in err
    assert "none to learn from" not in err
    err = said("train", corpus, "--pretokenized", "--vocab-size", 3, *small)
    assert re.search(r"Warning: \d\d% of the training words are unknown; give a larger --vocab-size", err)
    err = said("train", corpus, "--pretokenized", "--clusters", 500, *small)
    assert "Warning: --clusters 500 does not fit a vocabulary of" in err
    err = said("train", corpus, "--pretokenized", "--decay-from", 1, *small)
    assert (
        "Warning: --decay-from 1 has no effect in 1 epoch, as the rate first falls after epoch 1; give a lower" in err
    )
    err = said("train", corpus, "--pretokenized", "--decay-from", 1, "--lr-decay", 3, *small)
    assert (
        err.count("no effect") == err.count("Warning: --decay-from 1 and --lr-decay 3 have no effect in 1 epoch") == 1
    )
    err = said("train", corpus, "--pretokenized", "--lr-decay", 3, *small)
    assert "Warning: --lr-decay 3 has no effect in 1 epoch, as the rate first falls after epoch" in err
    err = said("train", corpus, "--pretokenized", "--dropout-input", 0.2, "--dropout-output", 0.2, *small)
    assert re.search(r"^Chosen", err, re.M)
    assert "dropout" not in err
    err = said("train", corpus, "--pretokenized", "--lr", 0.1, "--rate-power", 0, "--no-average", *small)
    assert "Warning: the model is worse than an even guess among its 15 words; train again with a lower --lr." in err
    Path("lines.txt").write_text(sentences(2000).replace(" .", ""))
    err = said("train", "lines.txt", "--valid", corpus, *small)
    assert "words on average; if the text has a sentence on each line, give --lines" in err
    Path("chinese.txt").write_text("今天天气很好我们去公园散步吧。\n\n" * 50, "utf-8")
    err = said("train", "chinese.txt", "--lines", *small)
    assert "characters on average; text without spaces between words, such as Chinese, must be cut" in err
    err = said("train", corpus, "--pretokenized", *small)
    assert "Warning" not in err


def test_unknown_words_are_learned_by_default(run, corpus):
    """Words that occur once teach the model what to expect of <unk>, unless the text says so itself."""
    corpus.write_text(sentences(200) + "the zebra sleeps .\n" * 1 + sentences(200))
    for extra in ("", "the <unk> sleeps .\n"):
        Path("text.txt").write_text(extra + corpus.read_text())
        _, _, err = run("train", "text.txt", *SMALL, "--overwrite")
        assert "; 1 training word is unknown" in err
        _, out, _ = run("info", "--json")
        assert json.loads(out)["vocabulary"]["words"] == (16 if extra else 15)


def test_quiet_says_warnings_and_errors_only(run, corpus):
    """--quiet leaves warnings; --log has every line, and is added to."""
    code, out, err = run("train", corpus, *SMALL, "--quiet", "--log", "log.txt", "--epochs", 1)
    assert (code, out, err) == (0, "", "")
    first = Path("log.txt").read_text()
    assert first.startswith(f"$ rnnlm train {corpus} --pretokenized")
    rows = ["Training", "Vocabulary", "Validation", "Chosen", "epoch"]
    assert [line.split()[0] for line in first.splitlines() if line[0] != " "][1:6] == rows
    _, _, err = run("train", "--resume", "--epochs", 2, "--quiet", "--log", "log.txt")
    assert err == ""
    assert Path("log.txt").read_text().startswith(first)
    assert "epoch  2" in Path("log.txt").read_text()
    _, _, err = run("train", corpus, *SMALL, "--quiet", "--overwrite", "--valid", corpus)
    assert " ".join(err.split()).startswith("Warning: the validation text is the training text, so")
    assert err.count("\n") == 2


def test_a_log_that_nothing_is_written_to_is_not_left(run, corpus, model):
    """A refused command leaves no empty file; a file that is no log, such as a text or a model, is not added to."""
    assert run("train", corpus, *SMALL, "--log", "log.txt")[0] == 1
    assert not Path("log.txt").exists()
    for path in (corpus, model / "best.npz"):
        before = path.read_bytes()
        code, _, err = run("train", corpus, *SMALL, "--model", "other", "--log", path)
        assert (code, path.read_bytes()) == (1, before)
        assert "is not a log, which begins with" in err


def test_info_is_plain(run, model, corpus):
    """80 columns, words for what has no number, and all epochs, also those after the best."""
    assert run("train", "--resume", "--epochs", 7)[0] == 0
    _, out, _ = run("info")
    assert max(len(line) for line in out.splitlines() if "corpus.txt" not in line) <= 80
    assert "×" not in out
    assert "none" not in out
    assert "to the first step of a window" in out
    assert re.search(r"^[* ]     7 ", out, re.M)
    assert len(re.findall(r"^\* ", out, re.M)) == 1
    _, out, _ = run("info", "--json")
    assert len(json.loads(out)["history"]) == 7


@pytest.mark.parametrize("text", ["\x1b[31mred", "bell\x07", "\u202eabc"])
def test_nothing_that_moves_a_cursor_is_printed(run, corpus, text):
    """Words of a text, names of files and prompts come out without control characters."""
    corpus.write_text(sentences(200).replace("cat", text), "utf-8")
    folder = f"a{text}"
    assert run("train", corpus, *SMALL, "--model", folder)[0] == 0
    for command in (("info",), ("generate", "--prompt", text), ("evaluate", corpus)):
        code, out, err = run(*command, "--model", folder)
        assert code == 0
        assert not re.search("[\x00-\x09\x0b-\x1f\u202a-\u202e]", out + err), (command, out, err)
    _, _, err = run("evaluate", f"b{text}", "--model", folder)
    assert not re.search("[\x00-\x09\x0b-\x1f\u202a-\u202e]", err)


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_fits_a_terminal(run, monkeypatch, name):
    """No line is longer than 80 columns, no mark of a formatter is left, metavars are short."""
    monkeypatch.setenv("COLUMNS", "80")
    code, text, _ = run(*([name, "--help"] if name else ["-h"]))
    assert code == 0
    assert max(map(len, text.splitlines())) <= 80
    assert "\\b" not in text
    assert "\b" not in text
    assert not re.search("INTEGER|FLOAT|RANGE|TEXT RANGE|^ *\\[?CORPUS|^ *FILE\\.\\.\\.", text, re.M)


def test_each_option_is_one_plain_sentence():
    """Every help line begins with a capital, ends with a full stop, and is one sentence."""
    for name in COMMANDS:
        for parameter in commands.get_command(click.Context(commands), name).params:
            if isinstance(parameter, click.Option):
                assert re.fullmatch(r"[A-Z][^.]*(\.npz)?[^.]*\.", parameter.help), (name, parameter.help)


def test_a_shell_completes_commands_and_options():
    """`_RNNLM_COMPLETE=bash_source rnnlm` prints a script, and the script gets what may come next."""
    command = [sys.executable, "-m", "rnnlm"]
    ask = {**os.environ, "_RNNLM_COMPLETE": "bash_source"}
    script = subprocess.run(command, capture_output=True, text=True, check=True, env=ask).stdout
    assert "complete -o nosort -F _rnnlm_completion rnnlm" in script
    for words, expected in (("rnnlm tr", "train"), ("rnnlm train --batch", "--batch-size")):
        ask = {**os.environ, "_RNNLM_COMPLETE": "bash_complete", "COMP_WORDS": words}
        ask["COMP_CWORD"] = str(len(words.split()) - 1)
        out = subprocess.run(command, capture_output=True, text=True, check=True, env=ask).stdout
        assert expected in out


# Signals need processes of their own.

SLOW = ("--pretokenized", "--hidden", "16", "--batch-size", "4", "--bptt", "4", "--epochs", "6", "--threads", "1")


@pytest.fixture
def start(tmp_path):
    """Return a function that starts a training in a process, of which nothing is left when the test ends."""
    processes = []

    def call(*arguments, python=(), before=()):
        command = [*before, sys.executable, *python, "-m", "rnnlm", "train", *arguments]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes.append(subprocess.Popen(command, cwd=tmp_path, text=True, **pipes))
        return processes[-1]

    yield call
    for process in processes:
        with process:
            process.kill()


def wait(process, come):
    """Wait until something has come, or the process has ended: a test fails then, and does not hang."""
    while not come() and process.poll() is None:
        time.sleep(0.01)


@pytest.fixture
def long_corpus(tmp_path):
    """Return a text of which an epoch takes about a second."""
    path = tmp_path / "corpus.txt"
    path.write_text(sentences(8000))
    return path


def untimed(path):
    """Return a history without what the clock decides."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        {name: record[name] for name in record if name not in ("run", "seconds", "words_per_second")}
        for record in records
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupting_saves_says_how_to_resume_and_exits_with_130(tmp_path, long_corpus, number, start):
    """Ctrl-C, SIGTERM and SIGHUP alike end between two steps, with the state saved."""
    process = start("corpus.txt", *SLOW)
    wait(process, (tmp_path / "model/new.npz").exists)
    time.sleep(0.3)
    process.send_signal(number)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "all is saved." in err
    assert re.search(r"^Go on with: python -m rnnlm train --resume\n\Z", err, re.M)


def test_a_second_interrupt_says_how_to_resume(run, corpus, monkeypatch):
    """What ends a training at once leaves what was saved last, and how to go on with it is told."""

    def show(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("rnnlm.cli.train._Bars.show", show)
        code, _, err = run("train", corpus, *SMALL)
    assert code == 130
    assert "Interrupted at once; what was saved last is kept.\nGo on with: " in err
    assert err.endswith("train --resume\n")
    assert run("train", "--resume", "--epochs", 1)[0] == 0


def test_killed_at_random_moments_training_ends_as_if_it_never_was(tmp_path, long_corpus, start):
    """SIGKILL eight times in training, resume each time: weights are the same bytes, the history the same records."""

    def saved():
        return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "model").glob("*.npz")}

    long_corpus.write_text(sentences(4000))
    arguments = ("corpus.txt", *SLOW, "--epochs", "3")
    _, err = start(*arguments, "--model", "whole").communicate(timeout=300)
    assert "Finished" in err
    moments = random.Random(4)
    for kills in range(9):
        before, process = saved(), start(*arguments, "--save-every", "10")
        wait(process, lambda kills=kills, before=before: kills == 8 or saved() != before)
        time.sleep(moments.uniform(0, 0.1))
        if kills == 8 or process.poll() is not None:  # a very fast machine may come to the end before
            break
        process.kill()
        process.communicate()
        arguments = ("--resume", "--threads", "1")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert kills > 3
    for name in ("best.npz", "last.npz"):
        ours, theirs = (np.load(tmp_path / folder / name) for folder in ("model", "whole"))
        assert set(ours.files) == set(theirs.files)
        for entry in set(ours.files) - {"rnnlm"}:
            assert ours[entry].tobytes() == theirs[entry].tobytes(), (name, entry)
    assert untimed(tmp_path / "model/history.jsonl") == untimed(tmp_path / "whole/history.jsonl")
    assert not list((tmp_path / "model").glob(".*.tmp"))


def test_output_closed_early_is_no_error(run, model):
    """`rnnlm generate | head -1` ends silently."""
    command = f"{sys.executable} -m rnnlm generate --count 20000 --seed 1 | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=300)
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_python_m_rnnlm_is_the_same():
    """`python -m rnnlm --version` answers like `rnnlm --version`."""
    done = subprocess.run([sys.executable, "-m", "rnnlm", "--version"], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"rnnlm, version [\d.]+\n", done.stdout)
    assert os.environ.get("RNNLM_TRACEBACK") is None


def test_a_training_outlives_its_reader(tmp_path, long_corpus):
    """`rnnlm train ... 2>&1 | head -2` trains to its end, and exits with 0."""
    long_corpus.write_text(sentences(500))
    command = f"{sys.executable} -m rnnlm train corpus.txt {' '.join(SLOW)} 2>&1; echo $? > code"
    done = subprocess.run(
        f"({command}) | head -2", shell=True, capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert len(done.stdout.splitlines()) == 2
    assert done.stderr == ""
    deadline = time.monotonic() + 300
    while not (tmp_path / "code").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (tmp_path / "code").read_text() == "0\n"
    assert len((tmp_path / "model/history.jsonl").read_text().splitlines()) == 6


def test_a_hangup_is_ignored_where_nohup_says_so(tmp_path, long_corpus, start):
    """Started by nohup, a training goes on when its terminal is closed."""
    long_corpus.write_text(sentences(1000))
    process = start("corpus.txt", *SLOW, before=("nohup",))
    wait(process, (tmp_path / "model/new.npz").exists)
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err


@pytest.mark.parametrize("number", STOP_SIGNALS)
@pytest.mark.parametrize("module", ["rnnlm.cli", "numpy", "rnnlm.training"])
def test_a_signal_while_modules_are_loading(module, number, start):
    """Before there is anything to save, a signal ends us with 130 and without a traceback."""
    process = start("-", python=("-X", "importtime"))  # it tells what it has loaded, and waits for a text
    for line in process.stderr:
        if line.split()[-1] == module:
            break
    process.send_signal(number)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "Traceback" not in err


def test_interrupted_while_it_reads_a_text(tmp_path, start):
    """Ctrl-C while the text is tokenized ends at once, and leaves nothing."""
    (tmp_path / "corpus.txt").write_text(sentences(30_000).replace(" .", "."))
    process = start("corpus.txt", "--threads", "1")
    wait(process, lambda: list((tmp_path / "model").glob(".encoded-*")))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (130, "Interrupted.\n")
    assert not (tmp_path / "model").exists()


def test_without_arguments_the_help_is_printed():
    """`rnnlm` alone prints what `rnnlm --help` prints."""
    command = [sys.executable, "-m", "rnnlm"]
    alone = subprocess.run(command, capture_output=True, text=True, check=True)
    asked = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    assert (alone.stdout, alone.stderr) == (asked.stdout, "")


@pytest.mark.parametrize("name", ["new.npz", ".best.npz.tmp", "encoded-train/log"])
def test_logs_and_texts_are_no_files_of_the_model(run, corpus, model, name):
    """Whatever way leads to it."""
    for path in (f"model/{name}", f"model/../model/{name}"):
        code, _, err = run("train", corpus, *SMALL, "--overwrite", "--log", path)
        assert (code, "is a file of the model's own; name another with --log." in err) == (2, True)
        for arguments in ((path, *SMALL), (corpus, *SMALL, "--valid", path), (corpus, *SMALL, "--vocab", path)):
            code, _, err = run("train", *arguments, "--overwrite")
            assert (code, "is a file of the model's own; name another text." in " ".join(err.split())) == (2, True)


def test_a_log_is_not_where_standard_error_goes(run, corpus):
    """Lines of both would lie over each other."""
    command = [sys.executable, "-m", "rnnlm", "train", corpus, *map(str, SMALL), "--log", "log"]
    with Path("log").open("w") as log:
        assert subprocess.run(command, stderr=log, check=False).returncode == 1
    assert "what is printed goes there already" in " ".join(Path("log").read_text().split())


def test_a_file_of_options_is_read_whole_or_not_at_all(run, corpus):
    """One that is too large is refused, not cut."""
    Path("large.toml").write_text("# " + "x" * 2**20 + "\nhidden = 3\n")
    code, _, err = run("train", corpus, "--config", "large.toml")
    assert (code, "is too large" in err) == (2, True)


def test_what_goes_into_a_file_is_utf_8(model):
    """Whatever the locale: other characters than a terminal's would be lost without a word."""
    command = [sys.executable, "-m", "rnnlm", "score", "--words"]
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(command, input="the żółć\n".encode(), stdout=subprocess.PIPE, env=environment, check=True)
    assert "żółć" in done.stdout.decode()


def test_a_config_says_each_thing_once(run, corpus):
    """One name with a dash and with an underscore is one option."""
    Path("c.toml").write_text("batch-size = 3\nbatch_size = 4\n")
    code, _, err = run("train", corpus, "--config", "c.toml")
    assert (code, "c.toml: batch-size stands there twice; remove one." in err) == (2, True)
