"""N-best lists through the command line: each format comes out as its programs read it, or is refused in a sentence."""

import gzip
import math
import os
import random
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import rnnlm
import rnnlm.cli.rescore
from rnnlm.cli import STOP_SIGNALS, main
from rnnlm.nbest import FORMATS

SENTENCE = re.compile(r"Error: .*[^.]\.\n\Z")
NUMBER = r"-\d+\.\d{6}"
Run = Callable[..., tuple[int, str, str]]

MOSES = """\
0 ||| the cat sleeps . ||| LM0= -7.5 Distortion0= -2 -1 ||| -4.25 ||| 0=0 1=1
0 ||| the cat runs . ||| LM0= -7 Distortion0= 0 0 ||| -4.5
1|||the dog sings .|||lm: -37.2513|||-5
2 |||  ||| LM0= -1 ||| -0.5
2 ||| the cat sleeps . ||| LM0= -1 ||| -3e+00
"""
SRILM = """\
-1792.12 -16.0727 4 -pau- the cat sleeps . -pau-
-1795.5 -15 4 the cat runs . -pau-

-2000 -3 0
"""
KALDI = "utt_a-058813-1 the cat sleeps .\nutt_a-058813-2 the cat runs .\nutt_b-1\nutt_b-2 zyzzyva\n"
MIKOLOV = "1 the cat sleeps .\n1  the cat runs .\n2 \n2 the dog sings . \n3 the cat sleeps ."  # no last line feed
TSV = "speaker\tid\ttext\tscore\nx\ts 1\tthe cat sleeps .\t-3\nx\ts 1\tthe cat\t-0.5\ny\ts2\t\t0\n"
LISTS = {"moses": MOSES, "srilm": SRILM, "kaldi": KALDI, "mikolov": MIKOLOV, "tsv": TSV}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small trained model."""
    folder = tmp_path_factory.mktemp("nbest")
    choose = random.Random(1).choice
    nouns, verbs = ("cat", "dog", "bird", "child", "fish"), ("sleeps", "sings", "sees it", "runs", "eats")
    text = "".join(f"the {choose(nouns)} {choose(verbs)} .\n" for _ in range(200))
    (folder / "corpus.txt").write_text(text)
    options = {"pretokenized": True, "carry_state": True, "hidden": 8, "batch_size": 4, "bptt": 10, "epochs": 1}
    for _ in rnnlm.train(folder / "corpus.txt", folder / "model", threads=1, **options):
        pass
    return folder / "model"


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path
) -> Iterator[Run]:
    """Return a function that runs `rnnlm rescore` in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    previous = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def call(*arguments: object) -> tuple[int, str, str]:
        given = ["rnnlm", "rescore", *map(str, arguments), "--model", str(model), "--threads", "1"]
        monkeypatch.setattr(sys, "argv", given)
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        assert "defect of rnnlm" not in err
        return int(str(stop.value.code)), out, err

    yield call
    for number, handler in previous.items():
        signal.signal(number, handler)


def log10_p(model: Path, words: str) -> float:
    """Return what the sentence has alone."""
    lm = rnnlm.load(model)
    if words:
        return lm.log_prob(words) / math.log(10)
    (end,) = (p for word, p in lm.next_words("", 100) if word == "</s>")
    return math.log10(end)


def put(name: str, content: str | bytes) -> Path:
    """Write a file into the folder of the test."""
    path = Path(name)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_moses_lists_have_one_more_feature(run: Run, model: Path) -> None:
    """` RNNLM= ln p` ends the features; the total, the order and all else stand as they stood, and nothing is asked."""
    code, out, err = run(put("list", MOSES))
    assert (code, err) == (0, "")
    assert (
        re.sub(f"(?<=[^ ]) RNNLM= {NUMBER} ?(?=\\|)", " ", out).split()
        == MOSES.replace("37.2513|", "37.2513 |").split()
    )
    first, _, third, fourth, fifth = (float(re.search(f"RNNLM= ({NUMBER})", line)[1]) for line in out.splitlines())  # type: ignore[index]
    assert first == fifth == pytest.approx(log10_p(model, "the cat sleeps .") * math.log(10), abs=1e-4)
    assert third == pytest.approx(log10_p(model, "the dog sings .") * math.log(10), abs=1e-4)
    assert fourth == pytest.approx(log10_p(model, "") * math.log(10), abs=1e-4)
    assert out.splitlines()[0].endswith(" ||| -4.25 ||| 0=0 1=1")
    assert "lm: -37.2513 RNNLM= " in out.splitlines()[2]


def test_moses_best_are_the_words_alone(run: Run) -> None:
    """As topbest.py writes them: a line for each ID, by the total and the model's score."""
    put("list", MOSES)
    assert run("list", "--best", "--weight", 0)[1] == "the cat sleeps .\nthe dog sings .\n\n"
    assert run("list", "--best", "--weight", 0, "--old-weight", -1)[1].startswith(
        "the cat runs .\nthe dog sings .\nthe cat"
    )
    assert run("list", "--best", "--weight", 0, "--word-penalty", 5)[1].splitlines()[2] == "the cat sleeps ."


def test_no_bar_is_left_where_weights_are_printed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar that was not yet due is not drawn behind the figures of --tune, where nothing would remove it."""
    pytest.importorskip("rapidfuzz")
    monkeypatch.setattr("rnnlm.cli.progress.Screen.isatty", lambda _: True)
    code, out, err = run(put("list", MOSES), "--tune", put("ref", "the cat sleeps .\nthe dog sings .\nthe cat\n"))
    assert code == 0, err
    assert out.startswith("--weight ")
    assert "word errors" in err
    assert "hypotheses/s" not in err


def test_srilm_lists_have_the_score_replaced_or_added(run: Run, model: Path) -> None:
    """`acoustic lm nwords words`, lm in 16 digits; pauses are no words, and blank lines are passed over."""
    code, out, err = run(put("u1", SRILM))
    assert (code, err) == (0, "")
    rows = [line.split(" ") for line in out.splitlines()]
    assert [row[0] for row in rows] == ["-1792.12", "-1795.5", "-2000"]
    assert [row[2:] for row in rows] == [line.split()[2:] for line in SRILM.splitlines() if line]
    assert float(rows[0][1]) == pytest.approx(log10_p(model, "the cat sleeps ."), abs=1e-5)
    assert float(rows[2][1]) == pytest.approx(log10_p(model, ""), abs=1e-5)
    assert [row[1] for row in rows] == [f"{float(row[1]):.16g}" for row in rows]
    added = run("u1", "--weight", 0.5, "--old-weight", 2)[1].splitlines()
    assert float(added[1].split()[1]) == pytest.approx(-30 + 0.5 * float(rows[1][1]), abs=1e-9)


def test_srilm_lists_may_have_the_marks_of_its_lattice_tool(run: Run) -> None:
    """`<s>` and `</s>` around the words are neither counted nor scored, and stand where they stood."""
    marked = "-1792.12 -16.0727 4 <s> the cat sleeps . </s>\n-2000 -3 0 <s> </s>\n"
    plain = marked.replace(" <s>", "").replace(" </s>", "")
    scored = [run(put(name, text))[1].splitlines() for name, text in (("u1", marked), ("u2", plain))]
    assert [re.sub(" </?s>", "", line) for line in scored[0]] == scored[1]
    assert [line.partition(" <s>")[1:] for line in scored[0]] == [(" <s>", " the cat sleeps . </s>"), (" <s>", " </s>")]
    assert run("u1", "--best", "--word-penalty", 1)[1] == "u1 the cat sleeps .\n"
    assert "'<s>' is the model's own mark" in run(put("u1", "-1 -2 1 <s> the\n"), "--format", "srilm")[2]


def test_srilm_files_go_into_a_folder_as_they_came(run: Run) -> None:
    """Several files, plain and gzip, are written under their names; the best of all are `ID words`, in order."""
    Path("in").mkdir()
    put("in/b.score.gz", gzip.compress(SRILM.encode()))
    put("in/a", SRILM)
    code, out, err = run("in/b.score.gz", "in/a", "--output", "out")
    assert (code, out, err) == (0, "", "")
    assert sorted(path.name for path in Path("out").iterdir()) == ["a", "b.score.gz"]
    assert gzip.decompress(Path("out/b.score.gz").read_bytes()) == Path("out/a").read_bytes()
    assert len(Path("out/a").read_text().splitlines()) == 3
    code, out, _ = run("in/b.score.gz", "in/a", "--best")
    assert out == "b -pau- the cat sleeps . -pau-\na -pau- the cat sleeps . -pau-\n"
    again = Path("out/b.score.gz").read_bytes()
    assert run("in/b.score.gz", "in/a", "--output", "out")[0] == 0
    assert Path("out/b.score.gz").read_bytes() == again
    put("in/c", "-1 -2 1 a\n-1\n")
    assert run("in/b.score.gz", "in/c", "--output", "new")[0] == 1
    assert not Path("new").exists()
    assert run("in/b.score.gz", "in/a", "--output", "in/a")[::2] == (
        1,
        "Error: in/a: cannot be made (file exists); name another folder with --output.\n",
    )


def test_kaldi_lists_become_costs(run: Run, model: Path) -> None:
    """`KEY<tab>-ln p` in six digits, a line for a line; keys UTT-N are one list, named UTT."""
    code, out, _ = run(put("list", KALDI), "--format", "kaldi")
    assert code == 0
    rows = [line.split("\t") for line in out.splitlines()]
    assert [key for key, _ in rows] == [line.split()[0] for line in KALDI.splitlines()]
    assert all(cost == f"{float(cost):.6g}" for _, cost in rows)
    assert float(rows[0][1]) == pytest.approx(-math.log(10) * log10_p(model, "the cat sleeps ."), abs=1e-3)
    best = run("list", "--format", "kaldi", "--best", "--word-penalty", -100)[1]
    assert [line.split(" ")[0] for line in best.splitlines()] == ["utt_a-058813", "utt_b"]
    assert best.endswith("\nutt_b\n")


def test_mikolov_lists_become_scores(run: Run, model: Path) -> None:
    """log10 p alone, as with -nbest -debug 0; IDs end at the first blank, and an empty hypothesis is </s>."""
    code, out, _ = run(put("list", MIKOLOV), "--format", "mikolov")
    assert code == 0
    assert all(re.fullmatch(NUMBER, line) for line in out.splitlines())
    words = [re.split(" ", line, maxsplit=1)[1].strip() for line in MIKOLOV.split("\n")]
    expected = [log10_p(model, sentence) for sentence in words]
    assert [float(line) for line in out.splitlines()] == pytest.approx(expected, abs=2e-6)
    assert out.splitlines()[0] == out.splitlines()[-1]


def test_tables_have_one_more_column(run: Run, model: Path) -> None:
    """A header names id, text and perhaps score; other columns are free and stay, in their order."""
    code, out, err = run(put("list", TSV))
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "speaker\tid\ttext\tscore\trnnlm"
    assert [line.rpartition("\t")[0] for line in lines] == TSV.splitlines()
    assert float(lines[1].rpartition("\t")[2]) == pytest.approx(log10_p(model, "the cat sleeps ."), abs=2e-6)
    assert run("list", "--best", "--weight", 0)[1] == "s 1\tthe cat\ns2\t\n"


def test_a_list_may_come_from_standard_input_and_go_into_gzip(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """`-` is standard input, an --output that ends in .gz is compressed, a byte-order mark and CR are no words."""
    put("list", b"\xef\xbb\xbf" + MOSES.replace("\n", "\r\n").encode())
    with Path("list").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert run("-", "--output", "out.gz")[:2] == (0, "")
    assert gzip.decompress(Path("out.gz").read_bytes()).decode() == run(put("plain", MOSES))[1]


def test_context_reads_on_from_list_to_list(run: Run) -> None:
    """The first list is scored as without it, the second is not, and files follow one another as lists do."""
    put("list", MIKOLOV)
    alone, context = (
        run("list", "--format", "mikolov", *more)[1].splitlines() for more in ((), ("--context", "previous"))
    )
    assert [float(score) for score in context[:2]] == pytest.approx([float(score) for score in alone[:2]], abs=2e-6)
    assert all(one != other for one, other in zip(context[2:], alone[2:], strict=True))
    put("1", SRILM)
    put("2", SRILM)
    assert run("1", "2", "--output", "out", "--context", "previous")[0] == 0
    first, second = ([float(line.split()[1]) for line in Path(f"out/{name}").read_text().splitlines()] for name in "12")
    assert first == pytest.approx([float(line.split()[1]) for line in run("1")[1].splitlines()], abs=1e-5)
    assert all(abs(one - other) > 1e-3 for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("content", "options", "told"),
    [
        ("", (), "there is no hypothesis in it"),
        ("\n", ("--format", "srilm"), "there is no hypothesis in it"),
        ("1 the cat\n", (), "line 1: lists of several formats have lines like this"),
        ("1 0 1 cat\n", (), "line 1: lists of several formats have lines like this"),
        (MOSES, ("--format", "kaldi"), "line 1: this begins as a list of the format moses; leave --format out"),
        ("the cat sleeps .\nthe dog runs .\n", ("--format", "mikolov"), "seem to have no IDs.*'the'"),
        ("the cat sleeps .\nthe dog runs .\n", ("--format", "kaldi"), "seem to have no IDs.*'the'"),
        ("1 the cat\n the dog\n", ("--format", "mikolov"), "line 2: the line has no ID"),
        ("1 the cat\n\n2 a\n", ("--format", "kaldi"), "line 2: the line has no ID"),
        ("0 ||| a ||| b= 1 ||| -1\n0 ||| a\n", (), r"line 2: there is no ID \|\|\| words"),
        ("0 ||| a ||| b= 1 ||| -1\n-1 ||| a ||| b ||| -1\n", (), r"line 2: there is no ID \|\|\| words"),
        ("0 ||| a ||| b= 1 ||| -inf\n", (), "'-inf' is no number that can be the total; for the logarithm of zero"),
        ("0 ||| a ||| b= 1 ||| nan\n", (), "'nan' is no number"),
        ("0 ||| a ||| b= 1 ||| 1e999\n", (), "'1e999' is no number"),
        ("0 ||| a ||| RNNLM= 1 ||| -1\n", (), "RNNLM= already"),
        ("0 ||| a </s> ||| b= 1 ||| -1\n", (), "'</s>' is the model's own mark"),
        ("-1 -2 1 a\n-1 -2\n", (), "line 2: there is no acoustic score"),
        ("-1 -2 1 a\n-1 -2 -1 a\n", (), "line 2: '-1' is no number of words"),
        ("-1 -2 1 a\n-1 inf 1 a\n", (), "line 2: 'inf' is no number that can be the lm score"),
        ("-1 -2 1 a\nnan -2 1 a\n", (), "line 2: 'nan' is no number that can be the acoustic score"),
        ("NBestList1.0\n(-2300) a b\n", (), "format NBestList1.0"),
        ("id\ttext\n1\ta\tb\n", (), "line 2: the row has 3 columns and the header 2"),
        ("id\ttext\tid\n", (), "the header must name"),
        ("id\ttext\trnnlm\n", (), "the header must name"),
        ("id\ttext\n", (), "there is no hypothesis in it"),
        ("id\ttext\n\ta\n", (), "line 2: the column id is empty"),
        ("id\ttext\tscore\n1\ta\tx\n", (), "line 2: 'x' is no number that can be the score"),
        (b"1 the \xff\n", ("--format", "kaldi"), "line 1: byte 0xFF at offset 6 is not valid UTF-8; convert the file"),
        (b"1 a\n1 \0\n", ("--format", "kaldi"), "line 2: a NUL character"),
        (b"1 " + b"a " * 2**20, ("--format", "kaldi"), "line 1: the line has more than 1,048,576 characters"),
        (gzip.compress(b"1 a\n" * 9999, mtime=0)[:-9], ("--format", "kaldi"), "truncated or damaged gzip"),
        (MOSES, ("--weight", 2), "--weight has no effect on moses lists without --best"),
        (SRILM, ("--word-penalty", 2), "--word-penalty has no effect on srilm lists without --best"),
        (KALDI, ("--format", "kaldi", "--best", "--old-weight", 2), "--old-weight has no effect on the format kaldi"),
        ("id\ttext\n1\ta\n", ("--best", "--old-weight", 2), "--old-weight has no effect on a table without"),
    ],
)
def test_what_is_no_list_is_refused_in_a_sentence(
    content: str | bytes, options: tuple[object, ...], told: str, run: Run
) -> None:
    """The sentence names the file, the line where there is one, and what to do; nothing is written."""
    put("list", content)
    code, out, err = run("list", *options)
    assert (code, out) == (1, "")
    assert SENTENCE.fullmatch(err), err
    assert re.search(told, err), err
    assert run("list", *options, "--output", "out")[0] == 1
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "options",
    [
        ("--tune", "list", "--best"),
        ("--tune", "list", "--weight", 1),
        ("--weight", "nan"),
        ("--weight", "1e9"),
        ("--output", "missing/out"),
        ("--output", "."),  # its own folder
        ("--output", "/dev/null"),
        ("list",),
        ("list", "--output", "out"),
        ("list", "other/list", "--output", "list"),
        ("--format", "htk"),
        ("missing",),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_the_files(options: tuple[object, ...], run: Run) -> None:
    """Options that contradict each other, and places where nothing can be written."""
    put("list", MOSES)
    code, out, err = run("list", *options)
    assert code in (1, 2)
    assert out == ""
    assert SENTENCE.search(err), err
    assert [path.name for path in Path().iterdir()] == ["list"]
    assert Path("list").read_text() == MOSES


@pytest.mark.parametrize("options", [("--output", "tune"), ("--output", "own/best.npz"), ("--output", "own/curve.svg")])
def test_what_is_read_is_not_written_over(options: tuple[str, ...], run: Run, model: Path) -> None:
    """The text of --tune-on, and the files of any model."""
    put("list", MOSES)
    put("tune", "the cat sleeps .\n")
    shutil.copytree(model, "own")
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    code, out, err = run("list", "--cache", 9, "--tune-on", "tune", *options)
    assert (code, out) == (2, "")
    assert "name another with --output" in " ".join(err.split())
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_the_command_line_names_all_formats() -> None:
    """It cannot load the file that has them, so that --help answers at once."""
    assert set(rnnlm.cli.rescore.FORMATS) == set(FORMATS)


def test_a_list_in_pieces_has_no_best(run: Run) -> None:
    """An ID that comes again after others is refused where one hypothesis of each list is wanted."""
    put("list", "u1 a\nu2 b\nu1 c\n")
    code, out, err = run("list", "--format", "mikolov", "--best")
    assert (code, out) == (1, "")
    remedy = "put the hypotheses of a list next to each other"
    assert err == f"Error: list, line 3: the ID 'u1' comes again after others; {remedy}.\n"
    assert run("list", "--format", "mikolov")[0] == 0
    put("list", "id\ttext\nu1\ta\nu2\tb\nu1\tc\n")
    assert "list, line 4: the ID 'u1' comes again" in run("list", "--best")[2]


def test_lists_of_two_formats_are_not_mixed(run: Run) -> None:
    """Their totals are of different units."""
    code, _, err = run(put("a", MOSES), put("b", TSV), "--best")
    assert code == 1
    assert "of the formats moses and tsv" in err


def test_very_long_lists_are_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list has as many characters as memory is meant for, ends of lines among them, and not one more."""
    put("lists", "1 the cat\n" * 3 + "2 the cat\n" * 4)
    monkeypatch.setattr("rnnlm.nbest.LIST_LIMIT", 40)
    assert run("lists", "--format", "mikolov")[0] == 0
    monkeypatch.setattr("rnnlm.nbest.LIST_LIMIT", 39)
    code, out, err = run("lists", "--format", "mikolov")
    assert (code, out) == (1, "")
    assert "lists, line 7: a list of more than 39 characters; give a list fewer hypotheses" in " ".join(err.split())


def test_many_unknown_words_are_warned_of(run: Run) -> None:
    """Scores of <unk> after <unk> are written, with a warning."""
    code, _, err = run(put("list", "0 ||| der hund ||| x= 1 ||| 0\n"))
    assert code == 0
    assert err.startswith("Warning: 100% of the words are unknown")


def test_tuned_options_can_be_typed(run: Run) -> None:
    """Standard output is a line of options for --best, standard error has the word errors before and after."""
    pytest.importorskip("rapidfuzz")
    put("list", MOSES)
    put("right", "the cat runs .\nthe dog sings .\nthe cat sleeps .\n")
    code, out, err = run("list", "--tune", "right")
    assert code == 0
    assert re.fullmatch(r"--weight \S+ --word-penalty \S+ --old-weight 1\n", out)
    errors = [int(found) for found in re.findall(r"(\d+) word errors of 12", err)]
    assert errors[0] == 5
    assert errors[2] == 0
    assert run("list", "--best", *out.split())[0] == 0


def test_tuning_says_what_is_missing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package for word errors, or without references, it ends in a sentence."""
    put("list", MOSES)
    monkeypatch.setitem(sys.modules, "rapidfuzz", None)
    monkeypatch.setitem(sys.modules, "rapidfuzz.distance", None)
    code, out, err = run("list", "--tune", "list")
    assert (code, out) == (1, "")
    assert "pip install 'rnnlm-numpy[rescore]'" in err
    assert SENTENCE.fullmatch(err)


PIECES = (
    b"\0",
    b"\xff\xfe",
    b"\n",
    b"|||",
    b" ",
    b"\t",
    b"-inf",
    b"nan",
    b"1e400",
    b"-1",
    b"</s>",
    b"<s>",
    b"9" * 30,
    b"\r",
)


def mutated(content: bytes, choose: random.Random) -> bytes:
    """Damage a list in some places."""
    for _ in range(choose.randrange(1, 4)):
        start = choose.randrange(len(content) + 1)
        stop = min(len(content), start + choose.choice((0, 0, 1, 5, 40)))
        content = content[:start] + choose.choice((b"", bytes([choose.randrange(256)]), *PIECES)) + content[stop:]
    return content


@pytest.mark.parametrize("seed", range(int(os.environ.get("RNNLM_LISTS", "60"))))
def test_damaged_lists_end_in_success_or_a_sentence(seed: int, run: Run) -> None:
    """Whatever a list holds, it is written whole, with a score for each line, or refused with the file and the line."""
    choose = random.Random(seed)
    name = choose.choice(list(LISTS))
    content = mutated(LISTS[name].encode(), choose)
    put("list", content)
    options = ["--format", name] if name in ("kaldi", "mikolov") or choose.random() < 0.5 else []
    options += choose.choice(([], ["--best"], ["--context", "previous"]))
    code, out, err = run("list", *options, "--output", "out")
    assert out == ""
    if code:
        assert code == 1
        assert SENTENCE.fullmatch(err), err
        assert err.startswith("Error: list")
        assert not Path("out").exists()
    else:
        assert Path("out").read_bytes().endswith(b"\n")
    assert {path.name for path in Path().iterdir()} <= {"list", "out"}
