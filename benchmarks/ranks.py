"""Training on several ranks beside one process: speed, what is sent, and a model of what both cost; see `--help`.

Each contestant is started anew for each turn, alone on the machine, and rounds of turns are repeated; a figure is the
median of the rounds.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from machine import Table, facts

STREAMS = 64  # of each rank
SECONDS = 3.0  # of a turn
WARM = 4  # windows that make buffers, and are not counted
WORDS, HIDDEN, WINDOW = 10_000, 200, 35
KINDS = [(cell, clusters) for cell in ("elman", "lstm") for clusters in (False, True)]
NETWORKS = (("10 Gbit/s", 10e9 / 8, 50e-6), ("100 Gbit/s", 100e9 / 8, 5e-6))  # bytes/s; seconds of a message
NODES = (2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Figures:
    """What a contestant has found, per window, as its slowest rank sees it."""

    words: float  # of all ranks, a second
    window: float  # seconds
    summing: float  # seconds of them until the gradients of all are added up: waiting for the others is among them
    sent: float  # bytes of a rank's gradients, as they are added up


def work(cell: str, clustered: bool, streams: int, threads: int, seconds: float) -> None:
    """Train for some seconds as one of the ranks that there are, and print what was found."""
    import numpy as np
    from sides import RATE, Shape, counts, zipf_text

    from rnnlm.model import initialize
    from rnnlm.ranks import world
    from rnnlm.run import working
    from rnnlm.training import Progress, TrainingSettings, TrainingState, train

    ranks = world()
    shape = Shape(WORDS, HIDDEN, STREAMS, threads, None if clustered else (), WINDOW, cell=cell)
    settings = TrainingSettings(batch_size=streams, lr=RATE, rate_power=0.5, epochs=1000)
    corpus, summing, add = zipf_text(shape), [0.0], ranks.sum

    def timed(*arguments: object) -> object:
        began = time.perf_counter()
        try:
            return add(*arguments)
        finally:
            summing.append(time.perf_counter() - began)

    ranks.sum = timed
    model = initialize(shape.settings, counts(shape), np.random.default_rng(1))
    with working(threads) as workspace:
        state = TrainingState.begin(model, settings, counts(shape))
        events = train(state, settings, corpus, corpus.beginning(1000), workspace, ranks=ranks)
        progress = (event for event in events if isinstance(event, Progress))
        clock, sums = [], []
        for event in progress:
            clock.append(time.perf_counter())
            sums.append(getattr(ranks, "summed", 0))
            if ranks.agree(len(clock) > 2 * WARM and clock[-1] - clock[WARM] > seconds)[0]:
                break
    window = statistics.median(np.diff(clock[WARM:]).tolist())
    sent = 4 * (sums[-1] - sums[WARM]) / (len(sums) - 1 - WARM)
    if ranks.rank == 0:
        print(json.dumps([event.predictions / window, window, statistics.median(summing[WARM:]), sent]))


def turn(cell: str, clustered: bool, ranks: int, threads: int, copies: int = 1, each: int = STREAMS) -> Figures:
    """Start a contestant, or copies of it that know nothing of each other, and return what it has found."""
    own = [sys.executable, __file__, "--work", cell, str(int(clustered)), str(ranks * each), str(threads)]
    mpiexec = str(Path(sys.executable).with_name("mpiexec"))
    command = [mpiexec, "-n", str(ranks), *own] if ranks > 1 else own
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(copies)]
    found = []
    for process in started:
        output, _ = process.communicate()
        if process.returncode:
            sys.exit(f"a contestant has failed: {' '.join(command)}")
        found.append(Figures(*json.loads(output)))
    return Figures(
        sum(one.words for one in found), *(getattr(found[0], name) for name in ("window", "summing", "sent"))
    )


def median(found: list[Figures]) -> Figures:
    """Return the median of each figure."""
    return Figures(*(statistics.median(getattr(one, name) for one in found) for name in Figures.__annotations__))


CONTESTANTS = {
    "one process, 1 thread": (1, 1, 1, STREAMS),
    "two that know nothing of each other": (1, 1, 2, STREAMS),
    "one process, 2 threads": (1, 2, 1, 2 * STREAMS),
    "2 ranks": (2, 1, 1, STREAMS),
}


def measured(rounds: int) -> dict[tuple[str, bool], dict[str, Figures]]:
    """Let all contestants take turns; return what each has found for each kind of model."""
    results = {}
    for kind in KINDS:
        found: dict[str, list[Figures]] = {name: [] for name in CONTESTANTS}
        for _ in range(rounds):
            for name, (ranks, threads, copies, each) in CONTESTANTS.items():
                found[name].append(turn(*kind, ranks, threads, copies, each))
        results[kind] = {name: median(turns) for name, turns in found.items()}
        print(name_of(*kind), {name: round(one.words) for name, one in results[kind].items()}, file=sys.stderr)
    return results


def name_of(cell: str, clustered: bool) -> str:
    """Return what the tables call a kind of model."""
    return f"{'LSTM' if cell == 'lstm' else 'Elman'}, {'clusters' if clustered else 'full softmax'}"


def speeds(results: dict[tuple[str, bool], dict[str, Figures]]) -> Table:
    """Write the speeds as a table."""
    rows = []
    for kind, found in results.items():
        alone, apart, threads, ranks = (found[name] for name in CONTESTANTS)
        numbers = [f"{one.words:,.0f}" for one in (alone, apart, threads, ranks)]
        shares = [f"{ranks.words / (2 * alone.words):.2f}", f"{ranks.words / apart.words:.2f}"]
        rows.append([name_of(*kind), *numbers, *shares, f"{ranks.summing * 1e3:.1f} of {ranks.window * 1e3:.0f}"])
    note = (
        f"V = {WORDS:,}, H = {HIDDEN}, {STREAMS} streams a rank, windows of {WINDOW}; words a second. The efficiency is "
        "2 ranks beside twice one process, and beside two that know nothing of each other, which share the machine's "
        "memory too. Milliseconds in the sum have the time that ranks wait for each other."
    )
    shares = ["beside twice one", "beside two apart"]
    return Table("Speed", note, ("model", *CONTESTANTS, *shares, "ms in the sum, of a window"), rows)


def prediction(kind: Figures, nodes: int, bandwidth: float, latency: float) -> float:
    """Return the seconds of a window on so many nodes, from those of one rank by itself.

    Each node sends (n - 1) / n of its gradients twice, and as much comes in at the same time; the messages of a sum are
    n - 1 and log2 n, those of small things five times log2 n.
    """
    steps = max(1, nodes - 1).bit_length()
    messages = (nodes - 1) + 6 * steps
    return kind.window + 2 * kind.sent * (nodes - 1) / nodes / bandwidth + messages * latency


def memory_bandwidth(results: dict[tuple[str, bool], dict[str, Figures]]) -> float:
    """Return the bytes a second at which gradients are added up on this machine, from the full softmax of Elman's."""
    ranks, apart = (results["elman", False][name] for name in ("2 ranks", "two that know nothing of each other"))
    return 2 * ranks.sent / 2 / max(1e-4, ranks.window - apart.window)


def model_table(results: dict[tuple[str, bool], dict[str, Figures]]) -> Table:
    """Write what the model of cost predicts here beside what was measured, and what for networks."""
    rows = []
    here = memory_bandwidth(results)
    for kind, found in results.items():
        apart, ranks = found["two that know nothing of each other"], found["2 ranks"]
        alone = Figures(apart.words / 2, apart.window, 0, ranks.sent)
        local = prediction(alone, 2, here, 5e-6)
        row = [name_of(*kind), f"{ranks.sent / 1e6:.1f}", f"{local * 1e3:.0f} / {ranks.window * 1e3:.0f}"]
        for _, bandwidth, latency in NETWORKS:
            row += [f"{alone.window / prediction(alone, nodes, bandwidth, latency):.2f}" for nodes in (2, 64)]
        rows.append(row)
    note = (
        "A window takes what it takes on a process by itself while another works beside it, plus twice (n - 1)/n of the "
        "gradients' bytes over the bandwidth, plus messages times latency. The bandwidth between ranks of this machine, "
        f"{here / 1e9:.1f} GB/s, is taken from the first row. Efficiencies on networks are calculated, for one rank a "
        f"node with one thread and {STREAMS} streams, and latencies of 50 and 5 microseconds; the bytes are those of "
        "two ranks, and grow where more ranks touch more rows."
    )
    networks = [f"{name}, {nodes} nodes" for name, *_ in NETWORKS for nodes in (2, 64)]
    return Table("Cost", note, ("model", "MB a step", "ms a window, predicted / measured", *networks), rows)


def document(tables: Iterator[Table]) -> str:
    """Write the page."""
    title = (
        "# Several ranks beside one process\n\nWritten by `make bench-ranks`; see docs/cluster.md for what it means.\n"
    )
    return "\n".join([title, *(table.markdown() for table in tables)])


def main() -> None:
    """Measure, and write benchmarks/ranks.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contestant (3)")
    parser.add_argument("--output", default=Path(__file__).with_name("ranks.md"), type=Path, help="the page to write")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        cell, clustered, streams, threads = options.work
        work(cell, clustered == "1", int(streams), int(threads), SECONDS)
        return
    results = measured(options.rounds)
    options.output.write_text(document(iter([speeds(results), model_table(results), facts(2)])), "utf-8")


if __name__ == "__main__":
    main()
