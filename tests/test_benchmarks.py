"""The benchmarks run, and their pages have every table; what the figures are is no matter of tests."""

import subprocess
import sys
from pathlib import Path

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
    """`make bench` without PyTorch writes all seven tables, with a figure of ours in every row."""
    call("bench.py", "--quick", "--no-torch", "--output", tmp_path / "page.md")
    found = tables((tmp_path / "page.md").read_text("utf-8"))
    assert list(found) == [
        "Machine",
        "(a) Matrix product",
        "(b) Training, full softmax",
        "(c) Training, clustered softmax",
        "(d) Growth with the vocabulary",
        "(e) Start-up",
        "(f) Tokenizing and encoding",
        "(g) Generation and evaluation",
    ]
    assert not any("nan" in cell or "failed" in cell for rows in found.values() for row in rows for cell in row)
    speeds = {"(b)": 2, "(c)": 2, "(d)": 2, "(f)": 3, "(g)": 2}
    for title, rows in found.items():
        assert len(rows) >= 2, title
        assert {len(row) for row in rows} == {len(rows[0])}, title
        for row in rows[1:]:
            column = speeds.get(title[:3])
            if column and row[0] != "geometric mean":
                assert float(row[column].replace(",", "")) > 0, title
    assert {row[3] for row in found["(b) Training, full softmax"][1:-1]} == {"left out"}


def test_time_to_perplexity(tmp_path):
    """`make bench-ptb` trains by a recipe, and says when each perplexity was reached first."""
    for part in ("train", "valid"):
        lines = (ROOT / f"data/{part}.txt").read_text("utf-8").splitlines(keepends=True)
        (tmp_path / f"ptb.{part}.txt").write_text("".join(lines[:200]))
    (tmp_path / "tiny.toml").write_text("hidden = 10\nepochs = 2\n")
    call("ptb.py", tmp_path, "--recipes", tmp_path / "tiny.toml", "--output", tmp_path / "page.md")
    header, row = tables((tmp_path / "page.md").read_text("utf-8"))["Validation perplexity"]
    assert header[:2] == ["recipe", "200"]
    assert row[0] == "tiny"
    best = float(row[-2].split()[0])
    for mark, seconds in zip(header[1:-2], row[1:-2], strict=True):
        assert (seconds == "-") == (best > float(mark)), mark


def test_constants_of_clusters():
    """clusters.py prints the three constants that the cost model has, each a positive number."""
    lines = call("clusters.py", "--seconds", "0.001").splitlines()[:3]
    constants = {name: float(value) for name, _, value in (line.partition(" = ") for line in lines)}
    assert list(constants) == ["CALL", "PRODUCTS", "UPDATE"]
    assert all(value > 0 for value in constants.values())
