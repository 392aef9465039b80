"""Measure the defaults of training against their neighbours: one epoch of a corpus at each of several settings.

    python benchmarks/rates.py CORPUS

CORPUS is a folder with ptb.train.txt and ptb.valid.txt. Prints Markdown tables of validation perplexities and of words
a second. INPUT_RATE and OUTPUT_RATE are constants of model.py, all else are options of `rnnlm train`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

DEFAULTS = {
    "INPUT_RATE": 4.0,
    "OUTPUT_RATE": 0.4,
    "--rate-power": 0.5,
    "--lr": 0.00075,
    "--optimiser": "sgd",
    "--window": 35,
    "--streams": 20,
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
    "Optimisers": [
        *({"--optimiser": "adagrad", "--lr": rate} for rate in (0.02, 0.05, 0.1, 0.2)),
        *({"--optimiser": "adam", "--lr": rate} for rate in (0.001, 0.002, 0.004, 0.008)),
    ],
    "Windows and streams": [
        *({"--window": window, "--streams": streams} for streams in (8, 20, 64) for window in (5, 10, 20, 35, 70)),
    ],
}
PROGRAM = """
import sys
import rnnlm.model as model
model.INPUT_RATE, model.OUTPUT_RATE = map(float, sys.argv[1:3])
del sys.argv[1:3]
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
        print("| " + " | ".join([*shown, "validation perplexity after an epoch", "words/s"]) + " |")
        print("|" + " ---: |" * (len(shown) + 2))
        for change in changes:
            settings = DEFAULTS | change
            cells = [settings[name] if isinstance(settings[name], str) else f"{settings[name]:g}" for name in shown]
            print("| " + " | ".join([*cells, *epoch(arguments.corpus, settings)]) + " |", flush=True)


def epoch(texts: Path, settings: dict[str, float | str]) -> tuple[str, str]:
    """Train for an epoch. Returns the validation perplexity and the words a second."""
    options = [item for name, value in settings.items() if name.startswith("--") for item in (name, value)]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", PROGRAM, settings["INPUT_RATE"], settings["OUTPUT_RATE"], "train"]
        command += [texts / "ptb.train.txt", "--pretokenized", "--valid", texts / "ptb.valid.txt"]
        command += ["--vocab-size", 10000, "--hidden", 200, "--epochs", 1, *options, "--model", folder]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True)
        if done.returncode:
            return ("diverged", "-") if "diverged" in done.stderr else ("failed: " + done.stderr[-200:], "-")
        record = json.loads(Path(folder, "history.jsonl").read_text())
    return f"{record['valid_perplexity']:.1f}", f"{record['words_per_second']:,}"


if __name__ == "__main__":
    main()
