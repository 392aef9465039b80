"""What the fuzzer runs and what it calls a fault: commands in forks, models to harm, and a judge.

Each command runs in a fork of this process, which has imported everything: about 20 ms, and yet real exit codes, real
files as standard output and error, and limits of time and memory.
"""

import hashlib
import importlib
import json
import os
import pkgutil
import random
import re
import resource
import select
import shlex
import shutil
import signal
import stat
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

import rnnlm
from rnnlm import cli

LIMIT, GRACE = 60.0, 30.0  # seconds that a command has, and that it has to end after a signal
SPACE = 8 * 2**30  # bytes of addresses that a command may take
TELLTALES = re.compile(r"Traceback|defect|\b[A-Z]\w*Warning\b|Exception ignored")
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
ERROR = re.compile(r"Error: [^\n]*[^.\n]\.\n")  # one line, one full stop
USAGE_ERROR = re.compile(r"Error: [^\n]+\n")  # some of these sentences are click's own

ELSEWHERE = (
    "nltk.tokenize",
    "threadpoolctl",
    "tqdm",
    "jinja2",
)  # imported here once, with rnnlm, instead of in every fork

LSTM = {"--cell": "lstm", "--layers": "2", "--tied": None}
GRU = {"--cell": "gru", "--layers": "2", "--embedding": "3", "--dropout-weights": "0.1"}
KINDS = {  # options that make every optimizer, kind of memory and part of the mathematics appear, and most cells
    "sgd": {"--clusters": "1"},
    "momentum": {"--momentum": "0.5", "--clusters": "3", "--weight-decay": "0.001", "--vocab-size": "20", **LSTM},
    "adam": {"--optimizer": "adam", "--weight-decay": "0.01", "--dropout": "0.2", "--pretokenized": None, **GRU},
    "adagrad": {"--optimizer": "adagrad", "--carry-state": None, "--lowercase": None},
}
SMALL = {"--hidden": "4", "--epochs": "2", "--threads": "1", "--min-count": "1", "--bptt": "5", "--batch-size": "4"}
READERS = {  # commands that read a model, which takes the place of MODEL; what they write is called made
    "info": "info --json --model MODEL",
    "generate": "generate --model MODEL --seed 1 --count 3 --threads 1 --prompt dog",
    "evaluate": "evaluate other.txt --json --threads 1 --model MODEL",
    "score": "score other.txt --words --threads 1 --model MODEL",
    "rescore": "rescore lists.tsv --threads 1 --model MODEL",
    "next": "next dog --threads 1 --model MODEL",
    "pairs": "pairs pairs.tsv --json --threads 1 --model MODEL",
    "mix": "mix other.txt MODEL --json --threads 1",
    "export": "export --model MODEL --vocab made.words --npz made.npz",
    "trace": "trace dog --json --at 2 1 --model MODEL",
    "gradflow": "gradflow other.txt --json --lags 3 --words 30 --threads 1 --model MODEL",
    "curve": "curve MODEL model --json",
    "report": "report other.txt --threads 1 -o made.html --model MODEL",
    "gradcheck": "gradcheck --json --directions 1 --model MODEL",
    "train": "train --resume --epochs 4 --threads 1",
}


class Outcome(NamedTuple):
    """What a command did."""

    code: int  # as of a shell: negative where a signal ended it
    out: str
    err: str
    memory: int  # the most that was resident, in bytes, beside what this process shares with its forks (on Linux)
    late: bool  # it was told to end because its time was over


def run(
    folder: Path,
    arguments: list[str],
    limit: float = LIMIT,
    stdin: str = os.devnull,
    hook: Any = None,
    number: int = signal.SIGTERM,
) -> Outcome:
    """Run `rnnlm` in a folder; after `limit` seconds it gets the signal `number`. `hook` is its audit hook."""
    shared = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid, ended = begin(folder, arguments, (stdin, out.fileno(), err.fileno()), hook)
        late = not select.select([ended], [], [], limit)[0]
        if late:
            os.kill(pid, number)
            if not select.select([ended], [], [], GRACE)[0]:
                os.kill(pid, signal.SIGKILL)
        os.close(ended)
        _, status, usage = os.wait4(pid, 0)
        told = [os.pread(file.fileno(), 2**24, 0).decode("utf-8", "surrogateescape") for file in (out, err)]
    return Outcome(os.waitstatus_to_exitcode(status), told[0], told[1], usage.ru_maxrss * 1024 - shared, late)


def begin(folder: Path, arguments: list[str], files: tuple[str, int, int], hook: Any = None) -> tuple[int, int]:
    """Start `rnnlm` in a fork; returns its process, and a pipe that is readable when it has ended."""
    ended, open_while_alive = os.pipe()
    pid = os.fork()
    if pid:
        os.close(open_while_alive)
        return pid, ended
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `cli.main` sees to it
        os.close(ended)
        os.chdir(folder)
        os.dup2(os.open(files[0], os.O_RDONLY), 0)
        os.dup2(files[1], 1)
        os.dup2(files[2], 2)
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(*file, closefd=False) for file in ((0, "r"), (1, "w"), (2, "w")))
        resource.setrlimit(resource.RLIMIT_AS, (SPACE, SPACE))
        warnings.simplefilter("always")
        for hidden in (ResourceWarning, DeprecationWarning):  # what Python shows to no user
            warnings.simplefilter("ignore", hidden)
        tempfile.tempdir = str(folder / "tmp")
        sys.argv = ["rnnlm", *arguments]
        if hook:
            sys.addaudithook(hook)
        cli.main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def snapshot(folder: Path) -> dict[str, str]:
    """Return a digest of each file below a folder, by its path there."""
    found = {}
    for base, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(base, name)
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                digest = f"link to {path.readlink()}"
            else:
                digest = hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(mode) else str(stat.S_IFMT(mode))
            found[str(path.relative_to(folder))] = digest
    return found


class Case:
    """One case: its own source of chance, its folder, the commands that it ran, and the faults that they showed."""

    def __init__(self, world: "World", family: str, number: int) -> None:
        self.world, self.name = world, f"{family} {number}"
        self.number = number
        self.random = random.Random(f"{world.seed} {family} {number}")
        self.folder = world.folder / f"{family}-{number}"
        self.about = ""  # what was done to the files
        self.faults: list[str] = []

    def open_template(self, template: str = "") -> str:
        """Copy the folder of a trained model, a random one where none is named; returns its name."""
        template = template or self.random.choice(sorted(self.world.templates))
        shutil.copytree(self.world.templates[template], self.folder)
        return template

    def call(self, *arguments: str, guilty: str = "", limit: float = LIMIT, stdin: str = os.devnull) -> Outcome:
        """Run a command in the case's folder, and look at all that it must not do; `guilty` is to be named."""
        before = snapshot(self.folder)
        outcome = run(self.folder, list(arguments), limit, stdin)
        for fault in judge(outcome, before, snapshot(self.folder), guilty, patient=limit < LIMIT):
            self.fault(fault, arguments, outcome)
        return outcome

    def fault(self, what: str, arguments: tuple[str, ...], outcome: Outcome) -> None:
        """Note a fault, with all that is needed to understand it."""
        told = outcome.err[-300:].strip()
        command = shlex.join(argument if len(argument) < 99 else f"{argument[:60]}..." for argument in arguments)
        self.faults.append(f"{self.name}: {what} | {self.about} | rnnlm {command} | {outcome.code} | {told!r}")


def leftovers(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Name the temporary files that a command has left."""
    return sorted(name for name in set(after) - set(before) if name.startswith("tmp/") or name.endswith(".tmp"))


def judge(
    outcome: Outcome, before: dict[str, str], after: dict[str, str], guilty: str, patient: bool = False
) -> Iterator[str]:
    """Yield a sentence for each fault of one command; a `patient` one had been asked for more than it had time for."""
    code, told = outcome.code, outcome.out + outcome.err
    if outcome.late and not (patient and code in (0, 130)):
        yield "hangs"
        return
    if code not in (0, 1, 2, 130):
        yield f"exit code {code}"
    if match := TELLTALES.search(told):
        yield f"shows {match[0]!r}"
    if match := CONTROL.search(told):
        yield f"control character {match[0]!r}"
    if left := leftovers(before, after):
        yield f"leaves {left}"
    failed_check = code == 1 and outcome.out and not outcome.err  # of gradcheck
    if code not in (1, 2) or failed_check:
        return
    sentence = ERROR if code == 1 else USAGE_ERROR
    if not sentence.fullmatch(outcome.err[max(0, outcome.err.rfind("Error: ")) :]):
        yield "error is not one sentence"
    if not re.search(guilty, outcome.err):
        yield f"does not name {guilty}"
    if outcome.err.startswith(("Error", "Usage")) and before != after:  # otherwise it had begun to train
        yield f"changed although refused: {sorted(set(before.items()) ^ set(after.items()))[:4]}"


def sentences(count: int, chance: random.Random) -> str:
    """Return small English sentences, a line each, that are the same words raw and pretokenized."""
    nouns, verbs = ("cat", "dog", "bird", "child", "fish"), ("sleeps", "sings", "sees Mr. X", "runs", "eats")
    return "".join(f"The {chance.choice(nouns)} {chance.choice(verbs)} .\n" for _ in range(count))


def options(command: str) -> dict[str, click.Parameter]:
    """Return a command's options and arguments by name."""
    found = cli.commands.get_command(click.Context(cli.commands), command)
    return {parameter.opts[0]: parameter for parameter in found.params}


def flat(command: str, chosen: dict[str, str | None]) -> list[str]:
    """Return options as arguments, those alone that the command has."""
    known = options(command)
    return [part for name, value in chosen.items() if name in known for part in (name, value) if part is not None]


def stop_at(event: str, ending: str, count: int, number: int) -> Callable[[str, tuple[Any, ...]], None]:
    """Return an audit hook that sends its process a signal at the n-th such event of a path with this ending."""
    left = [count]

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        if name.startswith(event) and any(str(argument).endswith(ending) for argument in arguments):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), number)

    return hook


class World:
    """What all cases share: the seed, a folder for each kind of trained model, and what each command makes of it."""

    def __init__(self, folder: Path, seed: str, heavy: bool) -> None:
        self.folder, self.seed, self.heavy = folder, seed, heavy
        self.templates: dict[str, Path] = {}
        self._expected: dict[tuple[str, ...], tuple[Any, int]] = {}
        for name in (*ELSEWHERE, *(f"rnnlm.{module.name}" for module in pkgutil.iter_modules(rnnlm.__path__))):
            importlib.import_module(name)
        for kind, chosen in KINDS.items():
            for name in (kind, f"{kind} stopped"):
                self.templates[name] = self._train(folder / name, {**SMALL, **chosen}, stopped=name != kind)

    def _train(self, folder: Path, chosen: dict[str, str | None], stopped: bool) -> Path:
        (folder / "tmp").mkdir(parents=True)
        chance = random.Random(7)
        for name in ("corpus.txt", "other.txt"):
            (folder / name).write_text(sentences(60, chance))
        (folder / "pairs.tsv").write_text("The cat sings .\tThe cat sing .\nThe dog eats .\tdog The eats .\n")
        (folder / "lists.tsv").write_text("id\tscore\ttext\n1\t-3\tThe cat sings .\n1\t-4\tThe bird eats .\n")
        hook = stop_at("os.rename", "last.npz", 3, signal.SIGTERM) if stopped else None  # at a save in mid-epoch
        arguments = ["train", "corpus.txt", *flat("train", {**chosen, "--save-every": "1"})]
        outcome = run(folder, arguments, hook=hook)
        assert outcome.code == (130 if stopped else 0), outcome
        return folder

    def expected(self, template: str, command: str, model: str) -> tuple[Any, int]:
        """Return what a command gives with an unharmed model, and the memory that it takes."""
        key = (template, command, model)
        if key not in self._expected:
            with tempfile.TemporaryDirectory(dir=self.folder) as name:
                folder = shutil.copytree(self.templates[template], Path(name, "copy"))
                outcome = run(folder, reader(command, model))
                assert outcome.code == 0 or "not been evaluated" in outcome.err, outcome
                self._expected[key] = result(command, outcome, folder), outcome.memory
        return self._expected[key]


def reader(command: str, model: str) -> list[str]:
    """Return a command that reads a model."""
    return [model if argument == "MODEL" else argument for argument in READERS[command].split()]


def result(command: str, outcome: Outcome, folder: Path) -> Any:
    """Return all that a command has computed: what it has said and made, or what a training has reached."""
    if command == "train":
        return reached(folder / "model", "last.npz")
    return outcome.out, {path.name: path.read_bytes() for path in folder.glob("made*")}


def reached(model: Path, *names: str) -> dict[str, Any]:
    """Return what a training has reached: every array of these files, to the bit, and the history without times."""
    found: dict[str, Any] = {}
    for name in names:
        with np.load(model / name) as archive:
            arrays = {entry: archive[entry] for entry in archive if entry != "rnnlm"}
        found |= {f"{name} {entry}": (array.dtype.str, array.tobytes()) for entry, array in arrays.items()}
    records = [json.loads(line) for line in (model / "history.jsonl").read_text().splitlines()]
    clocks = ("run", "seconds", "words_per_second")
    found["history"] = [{key: value for key, value in record.items() if key not in clocks} for record in records]
    return found


def compare(case: Case, template: str, command: str, model: str, guilty: str, changed: bool, room: int) -> Outcome:
    """Run a command on a model that was harmed: it is to refuse it, or to give what the unharmed one gives.

    Where a change is legitimate (`changed`), results may differ; `room` is memory that it may take beside the usual.
    """
    expected, memory = case.world.expected(template, command, model)
    arguments = reader(command, model)
    outcome = case.call(*arguments, guilty="" if changed and command != "info" else re.escape(guilty))
    if outcome.memory > memory + room:
        case.fault(f"takes {(outcome.memory - memory) / 2**20:.0f} MB more", tuple(arguments), outcome)
    if outcome.code == 0 and not changed and result(command, outcome, case.folder) != expected:
        case.fault("is accepted and gives another result", tuple(arguments), outcome)
    return outcome
