"""Measure the defaults of training against their neighbors: one epoch of a corpus at each of several settings.

    python benchmarks/rates.py CORPUS

CORPUS is a folder with ptb.train.txt and ptb.valid.txt. Prints Markdown tables of validation perplexities and of words
a second. Names in capitals are constants of model.py, CELL_RATE the `rate` of the cell; all else are options of
`rnnlm train`.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from machine import print_table
from ptb import history

from rnnlm.model import CELLS, INPUT_RATE, OUTPUT_RATE, RULES, TIED_RATE
from rnnlm.training import TrainingSettings

DEFAULTS = {
    "INPUT_RATE": INPUT_RATE,
    "OUTPUT_RATE": OUTPUT_RATE,
    "TIED_RATE": TIED_RATE,
    "--cell": "elman",
    "CELL_RATE": CELLS["elman"].rate,
    "--tied": False,
    "--carry-state": False,
    "--average": False,
    "--dropout": 0.0,
    "--weight-decay": 0.0,
    "--rate-power": 0.5,
    "--lr": RULES["sgd"].learning_rate,
    "--optimizer": TrainingSettings.optimizer,
    "--bptt": TrainingSettings.bptt,
    "--batch-size": 20,
}
TABLES = {  # what a table is about, and what each of its rows changes
    "Rates for the rows of the tables of words": [
        {},
        {"INPUT_RATE": 1.0, "OUTPUT_RATE": 1.0, "--rate-power": 0.0, "--lr": 0.0015},
        {"INPUT_RATE": 1.0, "OUTPUT_RATE": 1.0, "--rate-power": 0.0, "--lr": 0.005},
        {"INPUT_RATE": 1.0, "OUTPUT_RATE": 1.0},
        {"INPUT_RATE": 2.0},
        {"INPUT_RATE": 8.0},
        {"OUTPUT_RATE": 0.2},
        {"OUTPUT_RATE": 0.8},
        {"--rate-power": 0.3},
        {"--lr": 0.000375},
        {"--lr": 0.0015},
    ],
    "Rates of cells": [
        *({"--cell": "relu", "CELL_RATE": rate} for rate in (0.5, 1, 2)),
        *({"--cell": cell, "CELL_RATE": rate} for cell in ("gru", "lstm") for rate in (5, 10, 20, 80)),
        *({"--cell": "lstm", "CELL_RATE": 20, "OUTPUT_RATE": rate} for rate in (0.2, 0.8)),
        *({"--cell": "lstm", "CELL_RATE": 20, "--tied": True, "TIED_RATE": rate} for rate in (0.4, 1.2, 2.4)),
    ],
    "Optimizers": [
        *({"--optimizer": "adagrad", "--rate-power": 0.0, "--lr": rate} for rate in (0.02, 0.05, 0.1, 0.2)),
        *({"--optimizer": "adam", "--rate-power": 0.0, "--lr": rate} for rate in (0.001, 0.002, 0.004, 0.008)),
    ],
    "Windows and streams": [
        *({"--bptt": window, "--batch-size": streams} for streams in (8, 20, 64) for window in (5, 10, 20, 35, 70)),
    ],
}
PROGRAM = """
import json, sys
import rnnlm.model as model
options = json.loads(sys.argv.pop(1))
cell = options["--cell"]
model.CELLS[cell] = model.CELLS[cell]._replace(rate=options["CELL_RATE"])
model.INPUT_RATE, model.OUTPUT_RATE, model.TIED_RATE = (options[k + "_RATE"] for k in ("INPUT", "OUTPUT", "TIED"))
from rnnlm.cli import main
main()
"""


def main() -> None:
    """Train for an epoch at each setting, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--table", choices=TABLES, action="append", help="this one; may be given several times")
    arguments = parser.parse_args()
    for title in arguments.table or TABLES:
        changes = TABLES[title]
        shown = [name for name in DEFAULTS if any(name in change for change in changes)]
        print(f"\n## {title}\n")
        header = [*shown, "validation perplexity after an epoch", "words/s"]
        print_table(header, (row(arguments.corpus, DEFAULTS | change, shown) for change in changes))


def row(corpus: Path, settings: dict[str, Any], shown: list[str]) -> list[str]:
    """Train for an epoch. Returns the settings to be shown, the validation perplexity and the words a second."""
    cells = [f"{value:g}" if isinstance(value, float) else f"{value}" for value in (settings[name] for name in shown)]
    given = {name: value for name, value in settings.items() if name.startswith("--")}
    options = []
    for name, value in given.items():
        options += [name if value else f"--no-{name[2:]}"] if isinstance(value, bool) else [name, value]
    command = [sys.executable, "-c", PROGRAM, json.dumps(settings), "train"]
    command += ["--hidden", 200, "--epochs", 1, *options]
    try:
        (record,) = history([*map(str, command)], corpus, quiet=True)
    except subprocess.CalledProcessError as error:
        return [*cells, "diverged" if "diverged" in error.stderr else "failed: " + error.stderr[-200:], "-"]
    return [*cells, f"{record['valid_perplexity']:.1f}", f"{record['words_per_second']:,}"]


if __name__ == "__main__":
    main()
