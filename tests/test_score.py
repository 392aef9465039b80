"""`rnnlm score` and `rnnlm next` as a user meets them, and `lm.score` behind them."""

import csv
import gzip
import io
import json
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import rnnlm
import test_cli

run = test_cli.run  # a fixture
SENTENCE = test_cli.SENTENCE
TEXT = "the cat sleeps .\n\nthe zebra sings .\nthe <unk> sees it .\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with two models: of pretokenized text, and of raw text, whose state is carried."""
    folder = tmp_path_factory.mktemp("score")
    (folder / "corpus.txt").write_text(test_cli.sentences(300))
    options = {"hidden": 8, "epochs": 1, "threads": 1}
    list(rnnlm.train(folder / "corpus.txt", folder / "words", pretokenized=True, carry_state=False, **options))
    list(rnnlm.train(folder / "corpus.txt", folder / "raw", lines=True, carry_state=True, **options))
    return folder


@pytest.fixture
def score(run, folder, monkeypatch):
    """Return a function that runs `rnnlm score` on a text, as standard input, and returns what it prints."""

    def call(text, *options, model="words", command="score"):
        content = text if isinstance(text, bytes) else text.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        return run(command, "--model", folder / model, "--threads", 1, *options)

    return call


def printed(result):
    """Return what was printed, where all went well."""
    code, out, err = result
    assert (code, err) == (0, "")
    return out


def test_a_line_in_a_line_out(score, folder):
    """Each line gives log10 of its probability, its predictions and its unknown words, and the sum is evaluate's."""
    rows = [row.split("\t") for row in printed(score(TEXT)).splitlines()]
    assert [row[1:] for row in rows] == [["5", "0"], ["1", "0"], ["5", "1"], ["6", "1"]]
    path = folder / "without-blank.txt"
    path.write_text(TEXT.replace("\n\n", "\n"))
    total = sum(float(row[0]) for row in (rows[0], *rows[2:]))
    evaluated = rnnlm.load(folder / "words").perplexity(path).log_likelihood / math.log(10)
    assert total == pytest.approx(evaluated, rel=1e-5)


def test_blank_lines_have_rows(score):
    """A blank line that is scored is a sentence of `</s>` alone, and has its row."""
    (row,) = csv.DictReader(io.StringIO(printed(score("  \n", "--words"))), delimiter="\t")
    assert (row["token_id"], row["token"]) == ("1", "</s>")


def test_the_last_line_needs_no_newline(score):
    """The last line that is scored counts whether or not a newline ends it."""
    assert printed(score(TEXT.rstrip("\n"))) == printed(score(TEXT))
    assert printed(score("")) == ""


def test_sentences_do_not_depend_on_their_neighbors(score):
    """In another order, and alone, lines have the same rows but for rounding."""
    lines = test_cli.sentences(80, seed=3).splitlines()
    rows, back = (printed(score("\n".join(part))).splitlines() for part in (lines, lines[::-1]))
    for line, row, other in zip(lines[:3], rows, back[::-1], strict=False):
        alone = printed(score(line)).split("\t")
        assert float(row.split("\t")[0]) == pytest.approx(float(other.split("\t")[0]), abs=1e-4)
        assert float(row.split("\t")[0]) == pytest.approx(float(alone[0]), abs=1e-4)
    assert printed(score("\n".join(lines), "--threads", 2)).splitlines() == rows


@pytest.mark.parametrize("model", ["words", "raw"])
def test_state_is_kept_from_line_to_line(score, folder, model):
    """--keep-state reads a text on from line to line, as evaluate does where the state is carried."""
    text = test_cli.sentences(40, seed=5)
    kept, apart = (
        [float(row.split("\t")[0]) for row in printed(score(text, *options, model=model)).splitlines()]
        for options in (["--keep-state"], [])
    )
    assert kept[0] == pytest.approx(apart[0], abs=1e-5)
    assert kept[1] != pytest.approx(apart[1], abs=1e-5)
    if model == "raw":
        whole = rnnlm.load(folder / "raw").log_prob(text) / math.log(10)
        assert sum(kept) == pytest.approx(whole, rel=1e-5)


def test_words_have_rows(score):
    """--words prints a header and a row for each word and `</s>`: ids from 1, surfaces, bits, unknown words."""
    out = printed(score(TEXT, "--words"))
    assert out.startswith("sentence_id\ttoken_id\ttoken\tsurprisal\tunknown\n1\t1\tthe\t")
    rows = list(csv.DictReader(io.StringIO(out), delimiter="\t"))
    assert [row["token"] for row in rows if row["sentence_id"] == "3"] == ["the", "zebra", "sings", ".", "</s>"]
    assert [row["token_id"] for row in rows if row["unknown"] == "1"] == ["2", "2"]
    bits = [sum(float(row["surprisal"]) for row in rows if row["sentence_id"] == str(number)) for number in (1, 2)]
    log10 = [float(row.split("\t")[0]) for row in printed(score(TEXT)).splitlines()]
    assert bits == pytest.approx([-value * math.log2(10) for value in log10[:2]], abs=1e-4)


@pytest.mark.parametrize(("base", "name", "unit"), [("2", "", 2), ("e", "_nats", math.e), ("10", "_log10", 10)])
def test_the_base_is_named(score, base, name, unit):
    """Columns in another base than 2 say so in the header; lines of JSON name the base of sentences."""
    out = printed(score("the cat sleeps .", "--words", "--base", base, "--rank"))
    rows = list(csv.DictReader(io.StringIO(out), delimiter="\t"))
    (line,) = printed(score("the cat sleeps .", "--base", base, "--json")).splitlines()
    total = json.loads(line)[{"e": "ln_probability"}.get(base, f"log{base}_probability")]
    assert sum(float(row[f"surprisal{name}"]) for row in rows) == pytest.approx(-total, abs=1e-5)
    (bits,) = printed(score("the cat sleeps .")).splitlines()
    assert total * math.log10(unit) == pytest.approx(float(bits.split("\t")[0]), abs=1e-5)
    assert f"entropy{name}" in rows[0]


def test_quotation_marks_are_quoted(score):
    """A token with a quotation mark is quoted as in CSV, so that R's read.delim and pandas read it."""
    code, out, err = score('say "x" " \'tis\n', "--words")
    assert code == 0
    assert " ".join(err.split()).startswith("Warning: 100% of the words are unknown to the model; is the text in its")
    tokens = [row["token"] for row in csv.DictReader(io.StringIO(out), delimiter="\t")]
    assert tokens == ["say", '"x"', '"', "'tis", "</s>"]
    assert '\t"""x"""\t' in out


def test_json_has_a_line_each(score):
    """--json gives an object for each sentence or, with --words, for each word, by the names of the columns."""
    lines = [json.loads(line) for line in printed(score(TEXT, "--json")).splitlines()]
    assert [(line["sentence_id"], line["predictions"], line["unknown"]) for line in lines][2:] == [(3, 5, 1), (4, 6, 1)]
    words = [json.loads(line) for line in printed(score(TEXT, "--json", "--words", "--rank")).splitlines()]
    assert list(words[0]) == ["sentence_id", "token_id", "token", "surprisal", "unknown", "rank", "entropy"]


def test_ranks_and_entropies_are_those_of_the_definition(score, folder):
    """A rank counts the words that `next_words` gives first; the entropy is the mean surprisal of all words."""
    rows = csv.DictReader(io.StringIO(printed(score("the cat zebra\n", "--words", "--rank"))), delimiter="\t")
    lm, read = rnnlm.load(folder / "words"), ""
    for row in rows:
        expected = lm.next_words(read, 10**6)
        token = "<unk>" if row["unknown"] == "1" else row["token"]
        assert int(row["rank"]) == 1 + [word for word, _ in expected].index(token)
        assert float(row["entropy"]) == pytest.approx(-sum(p * math.log2(p) for _, p in expected), abs=1e-4)
        assert float(row["surprisal"]) == pytest.approx(-math.log2(dict(expected)[token]), abs=1e-4)
        read += f" {row['token']}"


def test_raw_words_have_places(score):
    """Words of raw text have their places in the line; `--sum-to blanks` adds up those that no blank parts."""
    line = '"Don\'t sing,"  said the cat.'
    code, out, _ = score(line, "--words", model="raw")  # most of the words are unknown, and a warning says so
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(out), delimiter="\t"))
    places = [line[int(row["start"]) : int(row["end"])] for row in rows]
    assert places == ['"', "Do", "n't", "sing", ",", '"', "said", "the", "cat", ".", ""]
    _, out, _ = score(line, "--words", "--sum-to", "blanks", model="raw")
    joined = list(csv.DictReader(io.StringIO(out), delimiter="\t"))
    assert [row["token"] for row in joined] == ["\"Don't", 'sing,"', "said", "the", "cat.", "</s>"]
    assert [line[int(row["start"]) : int(row["end"])] for row in joined][:-1] == [row["token"] for row in joined][:-1]
    assert float(joined[0]["surprisal"]) == pytest.approx(sum(float(row["surprisal"]) for row in rows[:3]), abs=1e-5)
    assert [row["unknown"] for row in joined[:5]] == ["1", "1", "1", "0", "0"]


def test_several_sentences_on_a_line(score):
    """A line of raw text is one sentence whatever stops it has: one within it stays part of its word."""
    rows = csv.DictReader(
        io.StringIO(printed(score("the cat sings. it sleeps.", "--words", model="raw"))), delimiter="\t"
    )
    assert [row["token"] for row in rows] == ["the", "cat", "sings.", "it", "sleeps", ".", "</s>"]


def test_places_survive_every_text():
    """Whatever characters a line has, the places of its words hold what the words are made of."""
    generator = np.random.default_rng(1)
    parts = [
        *"ab\"'`.,-—()[]<>&$%İß’“”‘«»…",
        "''",
        "``",
        "...",
        " ",
        "\u00a0",
        "Don't",
        "<unk>",
        "cannot",
        "'tis",
        "U.S.",
    ]
    tokenizers = [
        rnnlm.text.Tokenizer(rnnlm.settings.TextSettings(lines=True, lowercase=fold)) for fold in (0 > 1, 1 > 0)
    ]
    quotes = {'"', "``", "''"}
    for _ in range(1500):
        line = "".join(generator.choice(parts, generator.integers(0, 12)))
        for tokenizer in tokenizers:
            (cut,) = tokenizer.lines(rnnlm.sources.Lines("a text", 1, [line]))
            for word, (start, end) in zip(cut.words, cut.spans, strict=True):
                written = line[start:end].lower() if tokenizer.settings.lowercase else line[start:end]
                assert written == word or {written, word} <= quotes, (line, cut)
            assert "".join(line[start:end] for start, end in cut.spans) == "".join(line.split())


def test_files_pipes_and_gzip_are_the_same(run, folder, score, tmp_path):
    """A text is the same from standard input, a file, and a gzip file; sentences are counted through all files."""
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "a.gz").write_bytes(gzip.compress(TEXT.encode()))
    here = ("--model", folder / "words", "--words")
    out = printed(run("score", "a.txt", *here))
    assert out == printed(run("score", "a.gz", *here)) == printed(score(TEXT, "--words"))
    assert printed(run("score", "a.txt", "a.gz", *here)).splitlines()[-1].startswith("8\t6\t</s>")


def test_a_pipe_that_waits_is_answered(folder):
    """Each line that is written to a pipe is answered before the next is written; prompts too."""
    for command, lines in (("score", 1), ("next", 2)):
        arguments = [command, *(["-", "--count", "2"] if command == "next" else []), "--model", folder / "words"]
        process = subprocess.Popen(
            [sys.executable, "-m", "rnnlm", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        for _ in range(3):
            process.stdin.write(b"the cat\n")
            answer = b"".join(process.stdout.readline() for _ in range(lines))
            assert answer.count(b"\n") == lines
        process.stdin.close()
        assert process.stdout.read() == b""
        assert process.wait() == 0
        process.stdout.close()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"good\nbad \xff byte\n", r"standard input, line 2: byte 0xFF.*--encoding"),
        (b"a\nb\0c\n", "standard input, line 2: a NUL"),
        (b"a\nthe </s> b\n", "standard input, line 2: '</s>' is the model's own mark"),
    ],
)
def test_what_is_no_text_is_one_sentence(score, content, message):
    """File, line and remedy, exit code 1."""
    for options in ((), ("--words",), ("--format", "srilm")):
        code, _, err = score(content, *options)
        assert code == 1
        assert SENTENCE.fullmatch(err)
        assert re.search(message, err)


def test_very_long_lines(score):
    """A line of more than two million characters is an error: it is no sentence."""
    for content in (b"x" * (2**21 + 5), b"a\n" + b"the cat " * 2**19):
        code, _, err = score(content)
        assert code == 1
        assert SENTENCE.fullmatch(err)
        assert re.search(r"line \d: .*more than 2,097,152 characters; put one sentence on each line", err)


def test_keys_of_kaldi(score):
    """A blank line has no key, and is an error where `--format kaldi` needs one."""
    out = printed(score("utt-1 the cat\nutt-2\n", "--format", "kaldi"))
    costs = [-float(row.split("\t")[0]) * math.log(10) for row in printed(score("the cat\n\n")).splitlines()]
    assert [row.split("\t")[0] for row in out.splitlines()] == ["utt-1", "utt-2"]
    assert [float(row.split("\t")[1]) for row in out.splitlines()] == pytest.approx(costs, rel=1e-5)
    code, _, err = score("utt-1 the cat\n \n", "--format", "kaldi")
    assert (code, SENTENCE.fullmatch(err) is not None) == (1, True)
    assert "standard input, line 2: a blank line has no key" in err


@pytest.mark.parametrize(
    "options",
    [
        ("--format", "kenlm", "--words"),
        ("--format", "kaldi", "--level", "1"),
        ("--format", "srilm", "--level", "word"),
        ("--level", "1"),
        ("--rank",),
        ("--words", "--rank", "--sum-to", "blanks"),
        ("--format", "mikolov", "a", "b"),
        ("--base", "3"),
    ],
)
def test_options_without_effect_are_refused(score, options):
    """What contradicts itself or does nothing is wrong usage, before anything is read."""
    code, out, _ = score(TEXT, *options)
    assert (code, out) == (2, "")


def test_no_garbage_ends_in_a_traceback(score):
    """Random bytes, in every format, end in success or in one sentence."""
    generator = np.random.default_rng(7)
    parts = [
        b"the",
        b"cat",
        b" ",
        b"\n",
        b"\t",
        b"<s>",
        b"\xff",
        b"\0",
        b"\xc3\xa9",
        b"\r",
        b'"',
        b"<unk>",
        b"\xe2\x80\xa8",
    ]
    weights = np.array([8, 8, 12, 6, 2, 0.1, 0.1, 0.1, 2, 1, 1, 1, 1])
    formats = [
        [],
        ["--words", "--rank"],
        ["--json", "--words"],
        *(["--format", name] for name in ("kenlm", "kaldi", "srilm", "mikolov", "fasterrnnlm")),
    ]
    for number in range(120):
        content = b"".join(generator.choice(parts, generator.integers(0, 40), p=weights / weights.sum()))
        code, _, err = score(content, *formats[number % len(formats)], model=("words", "raw")[number % 2])
        assert code in (0, 1)
        assert code == 0 or SENTENCE.fullmatch(err), (content, err)


def test_a_reader_that_goes_away_is_no_failure(folder):
    """Who reads only the first rows, as head does, sees no error."""
    command = f"yes the cat | {sys.executable} -m rnnlm score --model {folder}/words | head -n 2"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=os.environ)
    assert (done.stdout.count("\n"), done.stderr) == (2, "")


def test_scores_from_python(folder, score):
    """`lm.score` gives the records that the command prints; `log_probs` and `unknown` are what mixtures ask for."""
    lm = rnnlm.load(folder / "words")
    records = lm.score(TEXT, ranks=True)
    rows = [row.split("\t") for row in printed(score(TEXT)).splitlines()]
    assert [record.total / math.log(10) for record in records] == pytest.approx(
        [float(row[0]) for row in rows], abs=1e-5
    )
    assert [sum(record.unknown) for record in records] == [0, 0, 1, 1]
    sentences = [record.words for record in records]
    for log_p, record in zip(lm.log_probs(sentences), records, strict=True):
        assert log_p.dtype == np.float64
        assert log_p == pytest.approx(record.log_p, abs=1e-5)
    assert lm.unknown(["the", "zebra", "<unk>"]) == [False, True, True]
    assert lm.score([]) == lm.log_probs([]) == []
    assert [record.text for record in lm.score(["the cat\n", "a\nb"])] == ["the cat", "a b"]
    for wrong in (["a\0b"], ["\ud800"], ["the <s>"], [3], None):
        with pytest.raises(rnnlm.RnnlmError):
            lm.score(wrong)


def test_long_sentences_are_read_in_parts(folder):
    """A sentence longer than a window has the probabilities of one that is not, ranks or not."""
    lm = rnnlm.load(folder / "words")
    words = ["the", "cat"] * 3000
    (log_p,) = lm.log_probs([words])
    (record,) = lm.score([" ".join(words)], ranks=True)
    assert log_p[:100] == pytest.approx(lm.log_probs([words[:100]])[0][:100], abs=1e-5)
    assert record.log_p == pytest.approx(log_p, abs=1e-5)


def test_the_likeliest_next_words(run, folder, score):
    """`rnnlm next` prints words and probabilities, the likeliest first; of several prompts, each with its number."""
    out = printed(run("next", "the cat", "--count", 3, "--model", folder / "words"))
    rows = [(word, float(p)) for word, p in (row.split("\t") for row in out.splitlines())]
    expected = rnnlm.load(folder / "words").next_words("the cat", 3)
    assert [word for word, _ in rows] == [word for word, _ in expected]
    assert [p for _, p in rows] == pytest.approx([p for _, p in expected], rel=1e-5)
    several = printed(score("\nthe cat\n", "-", "--count", 3, command="next"))
    assert several.splitlines()[3:] == [f"2\t{row}" for row in out.splitlines()]
    Path("prompts.txt").write_text("the cat")
    out = printed(run("next", "--file", "prompts.txt", "--count", 3, "--model", folder / "words", "--json"))
    answer = json.loads(out)
    assert answer["prompt"] == "the cat"
    assert [word for word, _ in answer["words"]] == [word for word, _ in expected]


def test_prompts_that_cannot_be_used_are_named(run, score, folder):
    """Unknown words of a prompt are told; a mark of the model's own is an error with its line."""
    code, _, err = score("the\nthe zebra\n", "-", command="next")
    assert code == 0
    told = "standard input, line 2: the model does not know these words, and reads each as <unk>: 'zebra'."
    assert " ".join(err.split()) == told
    assert run("next", "the", "--file", "x", "--model", folder / "words")[0] == 2
    code, _, err = score("the\nthe <s>\n", "-", command="next")
    assert code == 1
    assert err.startswith("Error: standard input, line 2: '<s>' is the model's own mark")


ARPA = """\\data\\
ngram 1=4
ngram 2=1

\\1-grams:
-1\t<unk>
-99\t<s>\t-0.3
-0.5\tthe
-0.7\t</s>

\\2-grams:
-0.2\t<s> the

\\end\\
"""


def put_files_of_the_page(folder):
    """Write what the commands of docs/scoring.md read."""
    for name in ("test.txt", "valid.txt", "sentences.txt", "prompts.txt"):
        (folder / name).write_text(TEXT)
    files = {
        "words_text": "utt-1 the cat\nutt-2\n",
        "lists": "1 the cat\n1 the\n2 it\n",
        "test.nbest": "0 ||| the cat ||| TM= -1 ||| -1\n0 ||| cat ||| TM= -2 ||| -2\n",
        "test.ref": "the cat\n",
        "utt1.score.gz": "-10.5 -3.2 2 the cat\n-11.5 -2.2 1 cat\n",
        "probs": "0.1\n" * 16,
        "lm.arpa": ARPA,
    }
    for name, content in files.items():
        (folder / name).write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())


def test_the_page_of_scores_runs(run, folder, tmp_path, monkeypatch):
    """The commands and the code of docs/scoring.md run as they stand there, and so does what its tables say to type."""
    pytest.importorskip("rapidfuzz")
    page = (test_cli.ROOT / "docs/scoring.md").read_text("utf-8")
    (tmp_path / "model").symlink_to(folder / "raw")
    put_files_of_the_page(tmp_path)
    ngram = printed(run("score", "test.txt", "--format", "srilm"))
    for name in ("a.ppl", "b.ppl"):
        (tmp_path / name).write_text(ngram)
    shown = [line for block in re.findall(r"```sh\n(.*?)```", page, re.S) for line in block.splitlines()]
    in_tables = re.findall(r"\| `(rnnlm [^|`]*)`[^|`]*\|\n", page)
    assert len(shown) >= 12
    assert len(in_tables) >= 20
    for line in (*shown, *in_tables):
        before, _, command = line.rpartition(" | ")
        command, _, target = command.partition(" > ")
        text = f"{shlex.split(before)[1]}\n" if before else ""
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        code, out, err = run(*shlex.split(command)[1:])
        assert code == 0, (line, err)
        (tmp_path / (target or "out")).write_text(out)
    assert (tmp_path / "rnn.ppl").read_text().startswith("the cat sleeps .\n\tp( the | <s> ) \t= [2gram] ")
    assert (tmp_path / "scores").read_text().startswith("utt-1\t")
    for part in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(compile(part, "docs/scoring.md", "exec"), {})


def test_words_are_folded_as_the_training_text_was(run, tmp_path):
    """Also those that are put together again."""
    (tmp_path / "corpus.txt").write_text(test_cli.sentences(200))
    code, _, err = run("train", "corpus.txt", "--lines", "--lowercase", "--hidden", 4, "--epochs", 1, "--threads", 1)
    assert code == 0, err
    (tmp_path / "t.txt").write_text("The CAT doesn't.\n")
    rows = printed(run("score", "--words", "--sum-to", "blanks", "t.txt")).splitlines()
    assert [row.split("\t")[2] for row in rows[1:]] == ["the", "cat", "doesn't.", "</s>"]


def test_no_lines_have_no_rows(score):
    """An empty file, or nothing at a pipe, has no rows and is no error."""
    assert printed(score("")) == ""
    assert printed(score("", command="next")) != ""  # no prompt is the beginning of a sentence
