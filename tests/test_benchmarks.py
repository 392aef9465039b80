"""The benchmarks run, and their pages have every table; what the figures are is no matter of tests."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from threadpoolctl import threadpool_limits

from rnnlm import model, ranks

ROOT = Path(__file__).resolve().parent.parent


def call(script, *arguments):
    """Run a benchmark to its end, and return what it wrote on stdout."""
    command = [sys.executable, "-W", "error", str(ROOT / "benchmarks" / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def tables(page):
    """Return the rows of each table of a Markdown page, by the heading above it, as lists of cells."""
    found: dict[str, list[list[str]]] = {}
    for line in page.splitlines():
        if line.startswith("## "):
            rows = found[line.removeprefix("## ")] = []
        elif line.startswith("| ") and not line.startswith("| ---"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def test_speed(tmp_path):
    """`make bench` without PyTorch writes all eleven tables, with a figure of ours in every row."""
    call("bench.py", "--quick", "--no-torch", "--output", tmp_path / "page.md")
    found = tables((tmp_path / "page.md").read_text("utf-8"))
    assert list(found) == [
        "Machine",
        "(a) Matrix product",
        "(b) Training, full softmax",
        "(c) Training, clustered softmax",
        "(d) Training, other cells, full softmax",
        "(e) Training, LSTM, clustered softmax",
        "(f) The LSTM layer alone",
        "(g) LSTM of two layers, large vocabulary",
        "(h) Growth with the vocabulary",
        "(i) Start-up",
        "(j) Tokenizing and encoding",
        "(k) Generation and evaluation",
    ]
    assert not any("nan" in cell or "failed" in cell for rows in found.values() for row in rows for cell in row)
    speeds = {"(b)": 3, "(c)": 2, "(d)": 3, "(e)": 2, "(f)": 1, "(g)": 2, "(h)": 2, "(j)": 3, "(k)": 2}
    for title, rows in found.items():
        assert len(rows) >= 2, title
        assert {len(row) for row in rows} == {len(rows[0])}, title
        for row in rows[1:]:
            column = speeds.get(title[:3])
            if column and row[0] != "geometric mean":
                assert float(row[column].replace(",", "")) > 0, title
    assert {row[4] for row in found["(b) Training, full softmax"][1:-1]} == {"left out"}
    other_cells = found["(d) Training, other cells, full softmax"]
    assert [row[0] for row in other_cells[1:]] == ["LSTM, 2 layers, tied", "geometric mean"]
    hours, peak = map(float, found["(g) LSTM of two layers, large vocabulary"][1][3:])
    assert hours > 0
    assert peak > 0


def test_some_tables(tmp_path):
    """`--tables` measures what it names, and nothing else."""
    call("bench.py", "--quick", "--no-torch", "--tables", "large", "layer", "--output", tmp_path / "page.md")
    found = tables((tmp_path / "page.md").read_text("utf-8"))
    assert list(found) == ["Machine", "(f) The LSTM layer alone", "(g) LSTM of two layers, large vocabulary"]


@pytest.fixture
def sides(monkeypatch):
    """Return the module of the contestants."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    with threadpool_limits():  # they hold BLAS to one thread, in this process
        yield importlib.import_module("sides")


@pytest.mark.parametrize("cell", ["elman", "relu", "gru", "lstm"])
@pytest.mark.parametrize(("cutoffs", "tied"), [((), False), ((), True), ((5, 20), False)])
def test_contestants(sides, cell, cutoffs, tied):
    """Both sides can train every network, and walk its layers alone."""
    shape = sides.Shape(50, 16, 3, 1, cutoffs, window=4, text=200, cell=cell, layers=2, tied=tied)
    assert 0 < sides.prepare_ours(shape)(2) <= 2 * 4 * 3
    assert sides.prepare_our_layers(shape)(2) == 2 * 4 * 3
    pytest.importorskip("torch")
    for prepare in (sides.prepare_torch, sides.prepare_torch_layers):
        assert prepare(shape)(2) == 2 * 4 * 3


def test_operations(sides):
    """Each number of the matrices takes six operations a word; a layer of Elman's reads words without a matrix."""
    assert sides.Shape(50, 6, 3, 1).operations == 6 * (50 * 6 + 6 * 6)
    assert sides.Shape(50, 6, 3, 1, cell="lstm").operations == 6 * (50 * 6 + 2 * 24 * 6)
    assert sides.Shape(50, 6, 3, 1, cell="gru", layers=2, tied=True).operations == 6 * (50 * 6 + 4 * 18 * 6)


SCRIPTS = [path.name for path in (ROOT / "benchmarks").glob("*.py") if "import argparse" in path.read_text("utf-8")]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script):
    """Every benchmark with options says what they are, so it can at least be loaded."""
    assert "usage:" in call(script, "--help")


def test_parts_of_a_window(monkeypatch, capsys):
    """Each part has a time: the functions that parts.py measures are those that training calls."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    parts = importlib.import_module("parts")
    for name, small in {"NETWORKS": ("lstm",), "HIDDEN": (8,), "STREAMS": (4,), "WINDOWS": 2}.items():
        monkeypatch.setattr(parts, name, small)
    for module, name in ((model, "embed"), (model, "recur"), (model, "softmax_loss"), (ranks, "joint_norm")):
        monkeypatch.setattr(module, name, getattr(module, name))  # to have them back
    monkeypatch.setattr(model.Optimizer, "step", model.Optimizer.step)
    parts.main()
    *_, row = capsys.readouterr().out.splitlines()
    assert len(row.split("|")) > 10
    assert "nan" not in row


def test_time_to_perplexity(tmp_path):
    """`make bench-ptb` trains by a recipe, and says when each perplexity was reached first."""
    for part in ("train", "valid"):
        lines = (ROOT / f"data/{part}.txt").read_text("utf-8").splitlines(keepends=True)
        (tmp_path / f"ptb.{part}.txt").write_text("".join(lines[:200]))
    (tmp_path / "tiny.toml").write_text("hidden = 10\nepochs = 2\n")
    call("ptb.py", tmp_path, "--runs", tmp_path / "tiny.toml", "--output", tmp_path / "page.md")
    header, row = tables((tmp_path / "page.md").read_text("utf-8"))["Validation perplexity"]
    assert header[:2] == ["run", "200"]
    assert row[0] == "tiny"
    best = float(row[-2].split()[0])
    for mark, seconds in zip(header[1:-2], row[1:-2], strict=True):
        assert (seconds == "-") == (best > float(mark)), mark


def test_constants_of_clusters():
    """clusters.py prints the four constants that the cost model has, each a positive number."""
    lines = call("clusters.py", "--seconds", "0.001").splitlines()[:4]
    constants = {name: float(value) for name, _, value in (line.partition(" = ") for line in lines)}
    assert list(constants) == ["CALL", "PRODUCTS", "UPDATE", "REST"]
    assert all(value > 0 for value in constants.values())
