"""Measure what the relative learning rates of words are worth: one epoch of a corpus at each of several.

    python benchmarks/rates.py CORPUS

CORPUS is a folder with ptb.train.txt and ptb.valid.txt. Prints a Markdown table of validation perplexities. The
constants that are varied are INPUT_RATE and OUTPUT_RATE of model.py, and --rate-power.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

# INPUT_RATE, OUTPUT_RATE, --rate-power, --lr
TRIALS = [
    (4.0, 0.4, 0.5, 0.015),
    (1.0, 1.0, 0.0, 0.03),
    (1.0, 1.0, 0.0, 0.1),
    (1.0, 1.0, 0.5, 0.015),
    (2.0, 0.4, 0.5, 0.015),
    (8.0, 0.4, 0.5, 0.015),
    (4.0, 0.2, 0.5, 0.015),
    (4.0, 0.8, 0.5, 0.015),
    (4.0, 0.4, 0.3, 0.015),
    (4.0, 0.4, 0.5, 0.0075),
    (4.0, 0.4, 0.5, 0.03),
]
PROGRAM = """
import sys
import rnnlm.model as model
model.INPUT_RATE, model.OUTPUT_RATE = map(float, sys.argv[1:3])
del sys.argv[1:3]
from rnnlm.cli import main
main()
"""


def main() -> None:
    """Train for an epoch at each setting, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    texts = parser.parse_args().corpus
    print("| INPUT_RATE | OUTPUT_RATE | --rate-power | --lr | validation perplexity after an epoch |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for inputs, outputs, power, rate in TRIALS:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-c", PROGRAM, inputs, outputs, "train", "--pretokenized"]
            command += [texts / "ptb.train.txt", "--valid", texts / "ptb.valid.txt", "--vocab-size", 10000]
            command += ["--hidden", 200, "--streams", 20, "--epochs", 1, "--lr", rate, "--rate-power", power]
            done = subprocess.run([*map(str, command), "--model", folder], capture_output=True, text=True)
            history = Path(folder, "history.jsonl")
            reached = (
                f"{json.loads(history.read_text())['valid_perplexity']:.1f}" if not done.returncode else "diverged"
            )
        print(f"| {inputs:g} | {outputs:g} | {power:g} | {rate:g} | {reached} |", flush=True)


if __name__ == "__main__":
    main()
