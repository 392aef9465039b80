"""The page on a model: its figures are those of the other commands, and it is one file that shows text as text."""

import gzip
import json
import math
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

import rnnlm
import test_cli
from rnnlm.charts import TICKS, Line, line_chart, ticks, written
from rnnlm.cli.options import given
from rnnlm.cli.train import train as train_cli
from rnnlm.defaults import choose
from rnnlm.reporting import COSTLY, READ, report, train_command
from rnnlm.settings import RunSettings

pytest.importorskip("jinja2")
run, corpus, model = test_cli.run, test_cli.corpus, test_cli.model  # fixtures
EMPTY = {"meta", "br", "line", "circle", "polyline"}  # elements that have no end


class Page(HTMLParser):
    """A page that is read: what it shows, and what it would fetch or run."""

    def __init__(self, path):
        super().__init__()
        self.text, self.tags, self.open, self.foreign = "", [], [], []
        self.feed(Path(path).read_text("utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        """Note an element, and each attribute that would fetch or run something."""
        self.tags.append(tag)
        assert len(dict(attrs)) == len(attrs)
        for name, value in attrs:
            if name in ("src", "href", "style", "action", "data") or name.startswith("on") or "url(" in (value or ""):
                self.foreign.append((tag, name, value))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        """Hold the end of an element against its beginning."""
        if tag not in EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data):
        """Keep what is shown."""
        if self.open and self.open[-1] == "style":
            assert "url(" not in data
            assert "@import" not in data
        else:
            self.text += data


@pytest.mark.parametrize("options", [(), ("--cell", "lstm", "--carry-state", "--layers", 2), ("--clusters", 2)])
def test_figures_are_those_of_evaluate(run, corpus, options):
    """Perplexities are the same to 6 digits; bands, and positions, have each prediction once, and all of the bits."""
    assert run("train", corpus, *test_cli.SMALL, *options)[0] == 0
    Path("other.txt").write_text(test_cli.sentences(60, seed=4) + "a zebra sleeps .\n")
    code, out, err = run("report", "other.txt", "--json")
    assert (code, err) == (0, "")
    found, expected = json.loads(out), json.loads(run("evaluate", "other.txt", "--json")[1])
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert found["unknown"] == 2
    for name in ("by_frequency", "by_position"):
        parts = found[name]
        assert sum(part["predictions"] for part in parts) == found["predictions"]
        assert sum(part["share"] for part in parts) == pytest.approx(1)
        bits = sum(part["bits"] * part["predictions"] for part in parts) / found["predictions"]
        assert bits == pytest.approx(found["bits_per_prediction"])
    assert found["by_position"][0]["predictions"] == found["sentences"]
    assert {"</s>", "<unk>"} <= {part["name"] for part in found["by_frequency"]}


def test_costly_words_and_the_page_are_those_of_the_text(run, model):
    """Words are shown as the text has them; costs are sums of what surprisals says."""
    Path("other.txt").write_text("the zebra sleeps .\nthe cat sings .\n")
    lm = rnnlm.load("model")
    found = report(lm, "model", ["other.txt"])
    bits = [pair for line in ("the zebra sleeps .", "the cat sings .") for pair in lm.surprisals(line)]
    assert [word for word, _ in found.page] == [word for word, _ in bits]
    assert [number for _, number in found.page] == pytest.approx([number for _, number in bits], rel=1e-5)
    total = math.fsum(number for _, number in bits)
    costs = {part.name: part.share * total for part in found.costly}
    assert costs["the"] == pytest.approx(bits[0][1] + bits[5][1])
    assert list(costs.values()) == sorted(costs.values(), reverse=True)
    assert len(costs) <= COSTLY
    worst = max(bits, key=lambda pair: pair[1])
    assert found.surprising[0].bits == pytest.approx(worst[1])
    assert [*found.surprising[0].before][:1] in ([], ["the"])
    assert found.flow.errors == len(bits)


def test_the_validation_text_is_read_where_no_other_is_named(run, model):
    """Its perplexity is the one that training reached; threads change nothing of the page."""
    pages = []
    for threads in (1, 2):
        code, out, err = run("report", "--threads", threads, "-o", "page.html")
        assert (code, out, err) == (0, "Report: page.html\n", "")
        pages.append(Path("page.html").read_bytes())
    assert pages[0] == pages[1]
    reached = rnnlm.load("model").saved.origin.valid_perplexity
    page = Page("page.html")
    assert f"{reached:,.2f}" in page.text
    assert "on the validation text." in page.text
    assert "rnnlm train" in page.text


def test_the_page_needs_no_other_file_and_no_script(run, model):
    """Nothing is fetched and nothing runs; it fits a phone, has a dark side, and can be printed."""
    run("report")
    page, source = Page("report.html"), Path("report.html").read_text("utf-8")
    assert page.foreign == []
    assert not {"script", "link", "iframe", "img", "object", "base", "form"} & set(page.tags)
    assert "http" not in re.sub(r'http-equiv="[^"]*"', "", source)
    assert "default-src 'none'" in source
    assert 'name="viewport"' in source
    assert "prefers-color-scheme: dark" in source
    assert "@media print" in source
    assert page.tags.count("svg") == 2
    assert "\ufffd" not in source
    assert re.search(r'title="[\d.]+ bits">the<span class="sr"> [\d.]+ bits</span>', source)


def test_whatever_a_text_holds_is_shown_as_text(run, tmp_path):
    """A corpus of markup, in a file with a name of markup, puts no element into the page."""
    line = "<script>alert(1)</script> \" onmouseover=x &amp; {{ 7 * 7 }} {% for %} </p> \u202e <!-- ]]> 'a' .\n"
    Path("<b>&.txt").write_text(line * 60)
    assert run("train", "<b>&.txt", *test_cli.SMALL, "--model", "<i>m&")[0] == 0
    code, _, err = run("report", "<b>&.txt", "--model", "<i>m&")
    assert (code, err) == (0, "")
    page = Page("report.html")
    assert not {"script", "b", "i"} & set(page.tags)
    assert page.foreign == []
    for word in ("<script>alert(1)</script>", "&amp;", "</p>", "<!--", "<b>&.txt", "<i>m&", "\ufffd"):
        assert word in page.text
    assert "{{" in page.text
    assert "\u202e" not in page.text


def test_a_long_text_is_read_to_a_limit(run, model, monkeypatch):
    """The page says of how many predictions its figures are."""
    monkeypatch.setattr("rnnlm.reporting.READ", 100)
    with gzip.open("long.txt.gz", "wt") as file:
        file.write(test_cli.sentences(100))
    run("report", "long.txt.gz")
    assert re.search(r"the first 1\d\d of its 5\d\d predictions", Page("report.html").text)
    assert READ >= 10_000


@pytest.mark.parametrize("content", ["cat\n", "zebra\n", "the cat " * 300 + "\n", f"the {'x' * 10**6} sleeps\n"])
def test_small_and_odd_texts_have_a_page(run, model, content):
    """One word, one unknown word, one very long sentence, one very long word."""
    Path("odd.txt").write_text(content)
    assert run("report", "odd.txt")[0] == 0
    assert Path("report.html").stat().st_size < 200_000
    assert Page("report.html").tags.count("svg") == 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("missing.txt",), 1, "missing.txt: there is no such file"),
        (("empty.txt",), 1, "empty.txt"),
        (("binary.txt",), 1, "line 1"),
        (("--model", "model/best.npz"), 1, "name a text"),
        (("--model", "gone"), 1, "no texts gone"),
        (("-o", "corpus.txt"), 2, "ends in .html"),
        (("-o", "nowhere/page.html"), 1, "name another file with -o"),
        (("--model", "missing"), 1, "missing"),
    ],
)
def test_what_has_no_page(run, model, arguments, code, message):
    """A sentence says what is wrong, and no file is left."""
    Path("empty.txt").write_text("")
    Path("binary.txt").write_bytes(b"\xff\x00\xfe")
    if "gone" in arguments:
        Path("gone").mkdir()
        Path("gone/best.npz").write_bytes(Path("model/best.npz").read_bytes())
        message = "name a text"
    before = sorted(Path().rglob("*"))
    found, out, err = run("report", *arguments)
    assert (found, out) == (code, "")
    assert test_cli.SENTENCE.search(err)
    assert message in err
    assert sorted(Path().rglob("*")) == before


def test_without_jinja_the_remedy_is_named(run, model, monkeypatch):
    """The figures are there all the same, as JSON."""
    monkeypatch.setitem(sys.modules, "jinja2", None)
    code, out, err = run("report")
    assert (code, out) == (1, "")
    assert "pip install jinja2" in err
    assert run("report", "--json")[0] == 0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"hidden": 200, "cell": "lstm", "carry_state": False, "tied": True, "epochs": 20, "lr": 0.25},
        {"valid": ("a b.txt", "c.txt"), "pretokenized": True, "min_count": 3, "vocab_size": 50, "dropout": 0.0},
        {"optimizer": "adam", "bptt": 0, "bptt_truncate": 4, "average": True, "clip": 0.0, "seed": 2**63},
        {"initial": "/old", "encoding": "latin-1", "epochs": 3, "momentum": 0.5},
        {"lines": True, "lowercase": True, "vocab": "words.txt", "layers": 2, "dropout_hidden": 0.1},
    ],
)
def test_the_command_repeats_the_training(options):
    """Read by the command line, it makes the settings of which the run began; what was chosen stays to choose."""
    settings = RunSettings.of("my text.txt", options)
    done = choose(settings, 100_000, 1000)
    if settings.initial is not None:  # that model decides these
        done = replace(done, network=replace(done.network, cell="gru"), text=replace(done.text, lines=True))
    _, _, *arguments = [part for group in train_command(done) for part in group]
    context = train_cli.make_context("train", arguments)
    again = given(context)
    if "from_" in again:
        again["initial"] = again.pop("from_")
    assert RunSettings.of(again.pop("corpus"), again) == settings


@pytest.mark.parametrize("logarithmic", [False, True])
@pytest.mark.parametrize(("low", "high"), [(0.1, 0.11), (1, 2), (3, 900), (1e-4, 1), (7, 7.0001), (1, 1e30)])
def test_ticks_are_few_and_round(low, high, logarithmic):
    """They lie within, in order, each written in its own way."""
    found = ticks(low, high, logarithmic)
    assert 2 <= len(found) <= TICKS
    assert found == sorted(found)
    assert low - 1e-9 * high <= found[0]
    assert found[-1] <= high * (1 + 1e-9)
    assert high / low < 1.001 or len({written(tick) for tick in found}) == len(found)


def test_a_chart_places_its_points():
    """The best is marked where it stands; one point alone is a chart too; names are text."""
    chart = line_chart("a <b>", [Line("x & y", [(1, 8), (2, 4)])], "epoch", "perplexity", (2, 4))
    assert "<b>" not in chart
    assert "x &amp; y" in chart
    (mark,) = re.findall(r'class="best" cx="([\d.]+)" cy="([\d.]+)"', chart)
    assert f'<circle cx="{mark[0]}" cy="{mark[1]}" r="2.2"' in chart
    assert "nan" not in line_chart("t", [Line("one", [(0, 1.0)])], "a", "b", None)
