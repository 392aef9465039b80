"""A short round of the fuzzer, and the fuzzer's own judgment."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fuzz_damage import _change_array, npy, pack, same_kind, unpack
from fuzz_harness import Outcome, judge, stop_at

FUZZ = Path(__file__).with_name("fuzz.py")
REFUSAL = "Error: model/best.npz: is damaged; train again.\n"


def test_a_short_round_finds_no_fault():
    """The same cases each time; `make fuzz` runs many more of them."""
    command = [sys.executable, FUZZ, "--seed", "suite", "--rounds", "0.015"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def judged(code=0, out="", err="", late=False, before=(), after=(), patient=False):
    """Return the faults of a command that left these files and said this."""
    outcome = Outcome(code, out, err, 0, late)
    return list(judge(outcome, dict.fromkeys(before, "1"), dict.fromkeys(after, "1"), "best.npz", patient))


@pytest.mark.parametrize(
    "done",
    [
        {},
        {"code": 1, "err": REFUSAL},
        {"code": 1, "err": f"Training text: 9 words.\n{REFUSAL}", "after": ["model/last.npz"]},
        {"code": 2, "err": "Usage: rnnlm\n\nError: No such option: --best.npz\n"},
        {"code": 1, "out": "a gradient failed its check\n"},
        {"code": 130, "late": True, "patient": True},
    ],
)
def test_what_is_in_order_is_no_fault(done):
    """Results, refusals in one sentence, failed checks and interrupts are what a command may end with."""
    assert judged(**done) == []


@pytest.mark.parametrize(
    ("done", "fault"),
    [
        ({"code": 130, "late": True}, "hangs"),
        ({"code": -9, "late": True, "patient": True}, "hangs"),
        ({"code": 3}, "exit code 3"),
        ({"code": -11}, "exit code -11"),
        ({"err": "x.py:1: RuntimeWarning: overflow\n"}, "shows 'RuntimeWarning'"),
        ({"code": 1, "err": "Error: best.npz: this is a defect of rnnlm.\n"}, "shows 'defect'"),
        ({"out": "\x1b[31m"}, r"control character '\x1b'"),
        ({"out": "a\x85"}, r"control character '\x85'"),
        ({"after": ["model/.best.npz.tmp"]}, "leaves ['model/.best.npz.tmp']"),
        ({"after": ["tmp/rnnlm-x"]}, "leaves ['tmp/rnnlm-x']"),
        ({"code": 1, "err": "Error: best.npz\nis damaged.\n"}, "error is not one sentence"),
        ({"code": 1, "err": "Error: best.npz is damaged..\n"}, "error is not one sentence"),
        ({"code": 1, "err": ""}, "error is not one sentence"),
        ({"code": 1, "err": "Error: the file is damaged.\n"}, "does not name best.npz"),
        ({"code": 1, "err": REFUSAL, "before": ["a"]}, "changed although refused: [('a', '1')]"),
    ],
)
def test_a_fault_is_seen(done, fault):
    """Each thing that a command must not do has a sentence."""
    assert fault in judged(**done)


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        (1, 2, True),
        (1, True, False),
        (1, 1.0, False),
        (0.5, 1, True),
        (None, 3, True),
        (None, [], False),
        ("x", 1, False),
    ],
)
def test_only_values_of_the_same_kind_may_change_a_result(old, new, same):
    """JSON's types are told apart, true from 1 as well."""
    assert same_kind(old, new) is same


def test_an_array_is_plausible_only_with_its_own_type_and_shape():
    """What `_change_array` calls plausible is finite and of the same dtype and shape, and its archive is whole."""

    class Choose:
        def __init__(self, how):
            self.answers = ["a.npy", how]

        def choice(self, _choices):
            return self.answers.pop(0)

    entries = unpack(pack({"a.npy": npy(np.eye(3, dtype=np.float32) + 2)}.items()))
    plausible = {
        how: _change_array(entries, Choose(how), False)[2] for how in ("negated", "1e38", "f8", "NaN", "no rows")
    }
    assert plausible == {"negated": True, "1e38": True, "f8": False, "NaN": False, "no rows": False}


def test_a_kill_comes_at_the_event_that_was_named(monkeypatch):
    """The audit hook counts operations on paths with an ending, and sends its signal once."""
    sent = []
    monkeypatch.setattr("os.kill", lambda _pid, number: sent.append(number))
    hook = stop_at("os.rename", "last.npz", 2, 9)
    for name, path in [("os.rename", "last.npz"), ("open", "last.npz"), ("os.rename", "best.npz")]:
        hook(name, (path,))
    assert sent == []
    hook("os.rename", ("x", "last.npz"))
    hook("os.rename", ("x", "last.npz"))
    assert sent == [9]
