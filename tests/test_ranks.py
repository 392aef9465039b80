"""Several ranks under mpiexec: the same losses as one process, the same bytes as themselves, and no hang."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rnnlm.errors import SettingsError
from rnnlm.model import Workspace, joint_norm
from rnnlm.ranks import ONE, world
from rnnlm.settings import LAUNCHERS, launched

MPIEXEC = Path(sys.executable).with_name("mpiexec")
needs_mpi = pytest.mark.skipif(not MPIEXEC.exists(), reason="mpich is not installed beside this Python")
OPTIONS = ["--pretokenized", "--hidden", "8", "--batch-size", "7", "--bptt", "5", "--threads", "1"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Return a small text of words that follow one another."""
    path, generator = tmp_path_factory.mktemp("text") / "text.txt", np.random.default_rng(1)
    words = [f"w{number}" for number in range(60)]
    lines = [" ".join(words[place] for place in generator.zipf(1.6, 1 + length % 9) % 60) for length in range(120)]
    path.write_text("\n".join(lines) + "\n")
    return path


def start(ranks, *arguments, own=None, **how):
    """Start rnnlm, or a program of its `own`, on some ranks."""
    program = ["-m", "rnnlm"] if own is None else ["-c", own]
    launch = [MPIEXEC, "-n", str(ranks)] if ranks > 1 else []
    command = [*map(str, [*launch, sys.executable, *program, *arguments])]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **how
    )


def ended(process, code=0):
    """Wait for a process, and return what it said; none may hang, but ranks wait for each other on a busy machine."""
    _, said = process.communicate(timeout=240)
    assert process.returncode == code, said
    return said


def history(folder):
    """Return the perplexities of all evaluations."""
    names = ("running_perplexity", "train_perplexity", "valid_perplexity", "valid_perplexity_excluding_unknown")
    records = map(json.loads, (folder / "history.jsonl").read_text().splitlines())
    return [[record[name] for name in names] for record in records]


def arrays(folder):
    """Return the bytes of all arrays that training goes on from."""
    stored = np.load(folder / "last.npz")
    return {name: stored[name].tobytes() for name in stored.files if name != "rnnlm"}


KINDS = [
    ["--dropout", "0.2", "--clusters", "3", "--momentum", "0.5"],
    ["--cell", "lstm", "--dropout-state", "0.5", "--average", "--clusters", "2", "--dropout-weights", "0.1"],
]


@needs_mpi
@pytest.mark.parametrize(("ranks", "kind"), [(2, KINDS[0]), (3, KINDS[1])])
def test_ranks_lose_what_one_process_loses(tmp_path, text, ranks, kind):
    """Streams that ranks cannot share equally give the same perplexities but for rounding, and one line of each."""
    command = ["train", text, *OPTIONS, "--epochs", "2", *kind]
    said = []
    for folder, number in (("one", 1), ("several", ranks)):
        said.append(ended(start(number, *command, "--model", tmp_path / folder)))
    np.testing.assert_allclose(history(tmp_path / "several"), history(tmp_path / "one"), rtol=1e-4)
    lines = [[re.sub(r"\d", "", line)[:12] for line in lines.splitlines()] for lines in said]
    assert lines[0] == lines[1]


# Stops after so many windows, as its last rank is told to, and says what it then has.
STOPPING = """
import itertools, sys
import rnnlm
from rnnlm.ranks import world
count, (text, model, stop) = itertools.count(1), sys.argv[1:]
listener = rnnlm.Listener(stopping=lambda: world().rank == 1 and next(count) == int(stop))
how = {"resume": True} if text == "-" else {"corpus": text, "pretokenized": True, "hidden": 8, "batch_size": 5}
options = {} if text == "-" else {"bptt": 5, "epochs": 2, "threads": 1, "cell": "gru", "average_every": int(model[-1])}
for event in rnnlm.train(model=model, listener=listener, **how, **options):
    if isinstance(event, rnnlm.Started):
        run = event.run
assert len(set(world().all(run.state.model.parameters["V"].tobytes()))) == 1
"""


@needs_mpi
@pytest.mark.parametrize("average_every", [0, 4])
def test_ranks_repeat_and_resume_to_the_last_bit(tmp_path, text, average_every):
    """Stopped in the middle by any rank and resumed, ranks that all have the same weights end with the same bytes."""
    whole, part = tmp_path / f"whole{average_every}", tmp_path / f"part{average_every}"
    ended(start(2, text, whole, 10**6, own=STOPPING))
    ended(start(2, text, part, 9, own=STOPPING))
    stored = json.loads(np.load(part / "new.npz")["rnnlm"].tobytes())["state"]
    assert (stored["window"], stored["ranks"]) == (12 if average_every else 9, 2)
    ended(start(2, "-", part, 10**6, own=STOPPING))
    assert arrays(part) == arrays(whole)
    assert history(part) == history(whole)


# Trains as if its ranks were on two machines, one of which has more of them than the other.
ON_TWO_MACHINES = """
import sys
import rnnlm
from rnnlm import ranks
ranks._Several._node = lambda self: self.comm.Split(self.rank % 2)
text, model = sys.argv[1:]
for _ in rnnlm.train(text, model, pretokenized=True, hidden=8, batch_size=5, bptt=5, epochs=2, threads=1, clusters=3):
    pass
"""


@needs_mpi
def test_sums_travel_between_machines(tmp_path, text):
    """Ranks that share memory with some others only give what one process gives."""
    for ranks in (1, 3):
        ended(start(ranks, text, tmp_path / str(ranks), own=ON_TWO_MACHINES))
    np.testing.assert_allclose(history(tmp_path / "3"), history(tmp_path / "1"), rtol=1e-4)


@needs_mpi
def test_a_signal_to_one_rank_stops_all_and_a_rank_that_is_killed_ends_all(tmp_path, text):
    """All is saved, and said once, when one rank is told to stop; and another number of ranks may go on from there."""
    model = tmp_path / "model"
    process = start(2, "train", text, *OPTIONS, "--epochs", "100000", "--patience", "100000", "--model", model)
    _after(model / "last.npz", process)
    os.kill(_ranks(model)[-1], signal.SIGTERM)
    said = ended(process, 130)
    assert said.count("all is saved") == 1
    process = start(3, "train", "--resume", "--model", model, "--save-every", "5")
    before = (model / "last.npz").stat().st_mtime_ns
    while (model / "last.npz").stat().st_mtime_ns == before and process.poll() is None:
        time.sleep(0.05)
    os.kill(_ranks(model)[-1], signal.SIGKILL)
    _, said = process.communicate(timeout=240)
    assert process.returncode != 0
    assert said.count("So far it was trained by 2 ranks; with 3 ranks sums are rounded otherwise.") == 1
    epochs = len(history(model)) + 1
    ended(start(1, "train", "--resume", "--model", model, "--epochs", epochs))


def _after(path, process):
    """Wait until there is a file."""
    while not path.exists() and process.poll() is None:
        time.sleep(0.05)


def _ranks(model):
    """Return the processes that train a model, but for mpiexec's own."""
    found = []
    for entry in filter(lambda entry: entry.name.isdigit(), Path("/proc").iterdir()):
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes().split(b"\0")
            if command[1:4] == [b"-m", b"rnnlm", b"train"] and os.fsencode(model) in command:
                found.append(int(entry.name))
    return sorted(found)


@needs_mpi
def test_what_is_wrong_is_said_once(tmp_path, text):
    """All ranks end with one sentence where the command is wrong, or there are more of them than streams."""
    wrong = {"--hiden": 2, "--batch-size": 1}
    started = {
        name: start(3, "train", text, "--pretokenized", name, "2", "--model", tmp_path / "model") for name in wrong
    }
    for name, code in wrong.items():
        assert ended(started[name], code).count("Error:") == 1
    assert not (tmp_path / "model").exists()


@needs_mpi
def test_a_rank_that_does_not_see_the_text_gets_a_copy(tmp_path, text):
    """Ranks without the model's folder say so in one sentence; with --scratch they have the text, and leave nothing."""
    folders = [tmp_path / name for name in ("here", "there", "scratch")]
    for folder in folders:
        folder.mkdir()
    here, there, scratch = folders
    train = [sys.executable, "-m", "rnnlm", "train", "--model", "model", "--threads", "1"]

    def together(*more):
        parts = [["-n", "1", "-wdir", folder, *train, *more] for folder in (here, there)]
        launch = [*map(str, [MPIEXEC, *parts[0], ":", *parts[1]])]
        return subprocess.run(launch, capture_output=True, text=True, timeout=240)

    done = together(text, *OPTIONS, "--epochs", "1")
    assert done.returncode == 1
    assert done.stderr.count("Error:") == 1
    assert "does not see the encoded text" in done.stderr
    done = together("--resume", "--scratch", scratch)
    assert done.returncode == 0, done.stderr
    assert (here / "model" / "best.npz").exists()
    assert not list(there.iterdir())
    assert not list(scratch.iterdir())


def test_without_mpi4py_nothing_is_trained(tmp_path, text):
    """Started by mpiexec without mpi4py, the first process says so in a sentence, and none trains."""
    (tmp_path / "mpi4py.py").write_text("raise ImportError")
    for rank, wanted in (("0", 1), ("1", 0)):
        path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PMI_RANK": rank, "PMI_SIZE": "2", "PYTHONPATH": path}
        said = ended(start(1, "train", text, *OPTIONS, "--model", tmp_path / "model", env=environment), 2)
        assert said.count("rnnlm-numpy[mpi]") == wanted
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(("rank", "size"), LAUNCHERS)
def test_launchers_are_known(monkeypatch, rank, size):
    """The launchers' variables say which of how many processes this one is."""
    for name in (name for names in LAUNCHERS for name in names):
        monkeypatch.delenv(name, raising=False)
    assert launched() == (0, 1)
    monkeypatch.setenv(size, "8")
    assert launched() == (0, 1)
    monkeypatch.setenv(rank, "3")
    assert launched() == (3, 8)
    for odd in ("9" * 5000, "\N{FULLWIDTH DIGIT TWO}"):
        monkeypatch.setenv(size, odd)
        assert launched() == (0, 1)


def test_one_process_adds_nothing():
    """A process by itself has all streams, and its sums are its own."""
    gradients = {"b1": [(slice(0, 3), np.array([1.0, 2.0, 2.0], np.float32))]}
    assert world() is ONE
    assert ONE.columns(5) == slice(0, 5)
    with_norm = ONE.sum({}, gradients, 2.0, Workspace())
    assert with_norm == (gradients, 2.0, joint_norm(gradients, Workspace()))
    assert ONE.first(lambda: 7) == 7
    with pytest.raises(SettingsError, match="1 ranks and 0 streams"):
        ONE.check(0)
