"""Training on several ranks beside one process: speed, what is sent, and a model of what both cost; see `--help`.

Each contestant is started anew for each turn, alone on the machine, and rounds of turns are repeated; a figure is the
median of the rounds.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from machine import Table, facts

from rnnlm.settings import cores

STREAMS = 64  # of each rank
WARM = 4  # windows that make buffers, and are not counted
WORDS, HIDDEN, WINDOW = 10_000, 200, 35
KINDS = [(cell, clusters) for cell in ("elman", "lstm") for clusters in (False, True)]
NETWORKS = (("10 Gbit/s", 10e9 / 8, 50e-6), ("100 Gbit/s", 100e9 / 8, 5e-6))  # bytes/s; seconds of a message
NODES = (2, 8, 64)
RANKS = (2, 4, 8)
TURN: list[str] = []  # options of each turn


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
        for _ in progress:
            clock.append(time.perf_counter())
            sums.append(getattr(ranks, "summed", 0))
            if ranks.agree(len(clock) > 2 * WARM and clock[-1] - clock[WARM] > seconds)[0]:
                break
    window = statistics.median(np.diff(clock[WARM:]).tolist())
    sent = 4 * (sums[-1] - sums[WARM]) / (len(sums) - 1 - WARM)
    if ranks.rank == 0:
        print(json.dumps([streams * WINDOW / window, window, statistics.median(summing[WARM:]), sent]))


def turn(cell: str, clustered: bool, ranks: int, threads: int, copies: int = 1, each: int = STREAMS) -> Figures:
    """Start a contestant, or copies of it that know nothing of each other, and return what it has found."""
    own = [sys.executable, __file__, *TURN, "--work", cell, str(int(clustered)), str(ranks * each), str(threads)]
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


ALONE, APART, THREADS = "one process, 1 thread", "two that know nothing of each other", "one process, 2 threads"
CONTESTANTS = {  # ranks, threads of each, copies, streams of each rank
    ALONE: (1, 1, 1, STREAMS),
    APART: (1, 1, 2, STREAMS),
    THREADS: (1, 2, 1, 2 * STREAMS),
} | {f"{n} ranks": (n, 1, 1, STREAMS) for n in RANKS if n <= max(2, cores())}
Results = dict[tuple[str, bool], dict[str, Figures]]


def measured(rounds: int) -> Results:
    """Let all contestants take turns; return what each has found for each kind of model."""
    results = {}
    for kind in KINDS:
        found: dict[str, list[Figures]] = {name: [] for name in CONTESTANTS}
        for _ in range(rounds):
            for name, contestant in CONTESTANTS.items():
                found[name].append(turn(*kind, *contestant))
        results[kind] = {name: median(turns) for name, turns in found.items()}
        print(name_of(*kind), {name: round(one.words) for name, one in results[kind].items()}, file=sys.stderr)
    return results


def name_of(cell: str, clustered: bool) -> str:
    """Return what the tables call a kind of model."""
    return f"{'LSTM' if cell == 'lstm' else 'Elman'}, {'clusters' if clustered else 'full softmax'}"


def speeds(results: Results) -> Table:
    """Write the speeds as a table."""
    rows = []
    for kind, found in results.items():
        ratios = [found["2 ranks"].words / (2 * found[ALONE].words), found["2 ranks"].words / found[APART].words]
        rows.append(
            [
                name_of(*kind),
                *(f"{found[name].words:,.0f}" for name in (ALONE, APART, THREADS, "2 ranks")),
                *(f"{ratio:.2f}" for ratio in ratios),
            ]
        )
    note = (
        f"V = {WORDS:,}, H = {HIDDEN}, {STREAMS} streams a rank, windows of {WINDOW} steps; words a second. The last "
        "two columns are the speed of 2 ranks divided by twice that of one process, and by that of two processes which "
        "know nothing of each other, but share the machine's memory and caches."
    )
    header = ("model", ALONE, APART, THREADS, "2 ranks", "2 ranks / twice one", "2 ranks / two apart")
    return Table("Two ranks", note, header, rows)


def predicted(found: dict[str, Figures], nodes: int, bandwidth: float, latency: float) -> float:
    """Return the seconds of a window of so many ranks, from those of processes that know nothing of each other.

    Each sends (n - 1) / n of its gradients' bytes twice, while as much comes in. A sum has n - 1 messages one after the
    other and then about log2 n; small things that are agreed upon, five times log2 n.
    """
    messages = (nodes - 1) + 6 * math.ceil(math.log2(nodes))
    moved = 2 * found["2 ranks"].sent * (nodes - 1) / nodes
    return found[APART].window + moved / bandwidth + messages * latency


def memory_bandwidth(results: Results) -> float:
    """Return at how many bytes a second gradients are added up on this machine, by the clustered Elman network."""
    found = results["elman", True]
    return found["2 ranks"].sent / max(1e-4, found["2 ranks"].window - found[APART].window)


def scaling(results: Results) -> Table:
    """Write what more ranks of this machine reach, beside what the model of cost predicts."""
    rows = []
    bandwidth = memory_bandwidth(results)
    for kind, found in results.items():
        for ranks in (n for n in RANKS if f"{n} ranks" in found):
            one = found[f"{ranks} ranks"]
            window = predicted(found, ranks, bandwidth, 1e-6)
            numbers = [f"{one.sent / 1e6:.1f}", f"{one.summing * 1e3:.1f}"]
            numbers += [f"{window * 1e3:.0f}", f"{one.window * 1e3:.0f}"]
            numbers += [f"{one.words:,.0f}", f"{one.words / ranks / found[ALONE].words:.2f}"]
            rows.append([name_of(*kind), str(ranks), *numbers])
    note = (
        "Ranks of this machine, one thread each. The sum has what ranks wait for each other. Predicted: the window of "
        "processes that know nothing of each other, and 2 (n - 1)/n of the bytes over a bandwidth of "
        f"{bandwidth / 1e9:.1f} GB/s, which is taken from two ranks of the clustered Elman network."
    )
    header = ("model", "ranks", "MB a step", "ms in the sum", "ms a window, predicted", "measured", "words/s")
    return Table("More ranks", note, (*header, "efficiency"), rows)


def networks(results: Results) -> Table:
    """Write what the model of cost predicts for several machines; none of it was measured."""
    rows = []
    for kind, found in results.items():
        row = [name_of(*kind), f"{found['2 ranks'].sent / 1e6:.1f}", f"{found[APART].window * 1e3:.0f}"]
        for _, bandwidth, latency in NETWORKS:
            row += [f"{found[APART].window / predicted(found, n, bandwidth, latency):.2f}" for n in NODES]
        rows.append(row)
    note = (
        "Efficiencies by the same model with a network's bandwidth, and 50 and 5 microseconds a message: calculated, "
        f"not measured. One rank a node with one thread and {STREAMS} streams; with more threads the same bytes must "
        "travel in less time. The bytes are those of two ranks; they grow where more ranks touch more rows."
    )
    header = [f"{name}, {nodes} nodes" for name, *_ in NETWORKS for nodes in NODES]
    return Table("Networks, calculated", note, ("model", "MB a step", "ms a window", *header), rows)


def main() -> None:
    """Measure, and write benchmarks/ranks.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contestant (3)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a turn (3)")
    parser.add_argument("--output", default=Path(__file__).with_name("ranks.md"), type=Path, help="the page to write")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        cell, clustered, streams, threads = options.work
        work(cell, clustered == "1", int(streams), int(threads), options.seconds)
        return
    TURN.append(f"--seconds={options.seconds}")
    results = measured(options.rounds)
    title = "# Several ranks beside one process\n\nWritten by `make bench-ranks`; docs/cluster.md says what it means.\n"
    tables = (speeds(results), scaling(results), networks(results), facts(2))
    options.output.write_text("\n".join([title, *(table.markdown() for table in tables)]), "utf-8")


if __name__ == "__main__":
    main()
