"""What the machine is, and how benchmarks call rnnlm and write their tables."""

import datetime
import importlib.metadata
import importlib.util
import itertools
import os
import platform
import resource
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import threadpoolctl

from rnnlm import __version__
from rnnlm.settings import cores

ROOT = Path(__file__).resolve().parent.parent
INFLUENCES = ("OPENBLAS_", "OMP_", "GOMP_", "MKL_", "BLIS_", "VECLIB_")  # variables that begin so change the speed


@dataclass(frozen=True)
class Table:
    """A Markdown table with what stands above it."""

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Write it; all columns but the first are figures, to the right."""
        rules = ["---", *["---:"] * (len(self.header) - 1)]
        lines = map(_line, (self.header, rules, *self.rows))
        return "\n".join([f"## {self.title}", "", *([self.note, ""] if self.note else []), *lines, ""])


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a Markdown table of figures, each row as soon as it is there."""
    for row in itertools.chain((header, ["---:"] * len(header)), rows):
        print(_line(row), flush=True)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def rnnlm() -> list[str]:
    """Return the command that runs rnnlm: the script beside this Python, as a user calls it, or else the module."""
    script = Path(sys.executable).with_name("rnnlm")
    return [str(script)] if script.exists() else [sys.executable, "-m", "rnnlm"]


def has_torch() -> bool:
    """Say whether PyTorch is installed."""
    return importlib.util.find_spec("torch") is not None


def facts(threads: int) -> Table:
    """Describe the machine and the versions of what is measured."""
    blas = [
        f"{pool['internal_api']} {pool['version']}, kernels for {pool.get('architecture', 'any core')}"
        for pool in threadpoolctl.threadpool_info()
        if pool["user_api"] == "blas"
    ]
    influences = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(INFLUENCES)]
    known = {
        "processor": f"{_processor()}, {platform.machine()}",
        "cores that may be used": str(cores()),
        "threads in use": str(threads),
        "system": platform.platform(),
        "Python": platform.python_version(),
        "numpy": np.__version__,
        "numpy's BLAS": "; ".join(blas) or "unknown",
        "PyTorch": importlib.metadata.version("torch") if has_torch() else "not installed",
        "set in the environment": ", ".join(influences) or "nothing that changes the speed",
        "rnnlm": __version__,
        "date": datetime.date.today().isoformat(),
    }
    return Table("Machine", "", ("what", "value"), list(known.items()))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def peak_megabytes(process: int | str = "self") -> float:
    """Return the peak resident set of a process, by its number, or of this one.

    Linux tells it of any process; `getrusage`, the way elsewhere, knows this one only, and on Linux would count in
    what its parent had before it began.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text("utf-8")
    except FileNotFoundError:
        if process != "self":
            raise
        unit = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    line = next((line for line in status.splitlines() if line.startswith("VmHWM")), "VmHWM: 0 kB")
    return int(line.split()[1]) / 1024
