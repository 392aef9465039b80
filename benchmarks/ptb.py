"""Train on the Penn Treebank, and write how long each training takes to reach a validation perplexity.

    python benchmarks/ptb.py CORPUS --runs default ptb-lstm

CORPUS is a folder with ptb.train.txt and ptb.valid.txt. Each training leaves its history in benchmarks/ptb/; of all
that are there, benchmarks/ptb.md has a table, and ptb.svg beside it the curves. A run is `default`, no option at all; a
cell, such as `lstm`, and nothing else; the name of a recipe; or a TOML file.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import ROOT, Table, facts, rnnlm

from rnnlm.settings import cores

MARKS = (200, 151.5, 140, 130, 125, 120, 115, 110, 105, 100, 95, 90, 85, 80)  # 151.5 is where Mikolov's toolkit ends
CELLS = ("gru", "lstm")
FULL = ("default", "lstm", "ptb-elman")
MIKOLOV, FASTER = 521, 283  # seconds of a whole run of these tools on this kind of machine; the first ends at 151.5

History = list[dict[str, Any]]


def main() -> None:
    """Train as asked, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="folder of ptb.train.txt and ptb.valid.txt")
    parser.add_argument("--runs", nargs="*", default=["ptb-fast"], help="default: ptb-fast; none: write the page anew")
    parser.add_argument("--full", action="store_true", help=f"{', '.join(FULL)} as well, for half an hour or so")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/ptb.md", help="the page to write")
    options = parser.parse_args()
    texts = [options.corpus / name for name in ("ptb.train.txt", "ptb.valid.txt")]
    for path in texts:
        if not path.is_file():
            parser.error(f"there is no file {path}")
    folder = options.output.with_suffix("")
    folder.mkdir(exist_ok=True)
    for name in [*options.runs, *(FULL if options.full else [])]:
        lines = "".join(json.dumps(record) + "\n" for record in train(name, options.corpus))
        (folder / f"{Path(name).stem}.jsonl").write_text(lines, "utf-8")
    histories = {
        path.stem: [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        for path in sorted(folder.glob("*.jsonl"), key=lambda path: path.stem)
    }
    parts = [f"# Time to a perplexity\n\nWritten by `make bench-ptb` from the histories in {folder.name}/.\n"]
    parts += [facts(cores()).markdown(), perplexity_table(histories).markdown()]
    picture = options.output.with_suffix(".svg")
    if importlib.util.find_spec("matplotlib"):
        draw(histories, picture)
        parts.append(f"![Validation perplexity over seconds of training]({picture.name})\n")
    else:
        print(f"{picture} is not drawn, for want of matplotlib", file=sys.stderr)
    options.output.write_text("\n".join(parts), "utf-8")
    print(f"Written: {options.output}", file=sys.stderr)


def train(name: str, corpus: Path) -> History:
    """Train as a run's name says, and show what it says. Returns the records of all evaluations."""
    print(f"\n{name}", file=sys.stderr)
    options = [] if name == "default" else ["--cell", name] if name in CELLS else ["--config", name]
    try:
        return history([*rnnlm(), "train", *options], corpus)
    except subprocess.CalledProcessError as error:  # it has said why
        sys.exit(error.returncode)


def history(command: Sequence[str], corpus: Path, quiet: bool = False) -> History:
    """Train through the command line, as a user does. Returns the records of all evaluations.

    Raises CalledProcessError when it fails, which has what it said if `quiet`.
    """
    with tempfile.TemporaryDirectory() as folder:
        texts = [str(corpus / "ptb.train.txt"), "--valid", str(corpus / "ptb.valid.txt")]
        options = ["--pretokenized", "--vocab-size", "10000", "--model", folder]
        subprocess.run([*command, *texts, *options], check=True, capture_output=quiet, text=True)
        return [json.loads(line) for line in Path(folder, "history.jsonl").read_text("utf-8").splitlines()]


def perplexity_table(histories: dict[str, History]) -> Table:
    """Write the seconds after which each run first had each perplexity."""
    rows = []
    for name, history in histories.items():
        best = min(history, key=lambda record: record["valid_perplexity"])
        found = f"{best['valid_perplexity']:.1f} after {best['seconds']:,.0f}"
        speed = sum(record["words_per_second"] for record in history) / len(history)
        rows.append((name, *(first_seconds(history, mark) for mark in MARKS), found, f"{speed:,.0f}"))
    note = (
        "Seconds on the training clock, evaluations and savings counted, at the first evaluation on the validation text"
        "\nthat gave the perplexity or less; in the last columns the best one, and the mean words/s of training. States"
        "\nare reset at each sentence by an Elman network, and carried through the text by an LSTM."
    )
    return Table("Validation perplexity", note, ("run", *(f"{mark:g}" for mark in MARKS), "best", "words/s"), rows)


def first_seconds(history: History, mark: float) -> str:
    """Write when a perplexity was first reached."""
    reached = [record["seconds"] for record in history if record["valid_perplexity"] <= mark]
    return f"{reached[0]:,.0f}" if reached else "-"


def draw(histories: dict[str, History], path: Path) -> None:
    """Draw the curves of all recipes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, history in histories.items():
        seconds = [record["seconds"] for record in history]
        axes.plot(seconds, [record["valid_perplexity"] for record in history], marker=".", label=name)
    axes.plot(MIKOLOV, 151.5, "x", color="black", label=f"Mikolov's rnnlm, 200 units: 151.5 after {MIKOLOV} s")
    axes.axvline(FASTER, color="grey", linestyle="--", label=f"faster-rnnlm: a whole run, {FASTER} s")
    axes.set(xlabel="seconds of training", ylabel="validation perplexity", xscale="log", ylim=(70, 300))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    main()
