"""The fuzzer's families of harmed models: damaged files, and wrong values in files whose checksums are right."""

import gzip
import io
import json
import os
import random
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fuzz_harness import READERS, Case, compare

MEGABYTE = 2**20


Damage = Callable[[Path, random.Random], None]


def _bytes(change: Callable[[bytes, random.Random], bytes]) -> Damage:
    def damage(path: Path, chance: random.Random) -> None:
        path.write_bytes(change(path.read_bytes(), chance))

    return damage


def _flip(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _other(make: Callable[[Path], object]) -> Damage:
    def damage(path: Path, _chance: random.Random) -> None:
        path.rename(path.parent.parent / f"old {path.name}")
        make(path)

    return damage


def _entries(data: bytes, chance: random.Random, twice: bool) -> bytes:
    """Swap the contents of two entries of a zip archive, or give one a second time; of other files, the halves."""
    if not data.startswith(b"PK"):
        return data * 2 if twice else data[len(data) // 2 :] + data[: len(data) // 2]
    entries = unpack(data)
    pairs = [(a, b) for a in entries for b in entries if entries[a][:128] != entries[b][:128]]  # other types or shapes
    first, second = chance.choice(pairs)
    if twice:
        return pack([*entries.items(), (first, entries[second])])
    return pack({**entries, first: entries[second], second: entries[first]}.items())


DAMAGES: dict[str, Damage] = {
    "bytes flipped": _bytes(_flip),
    "cut": _bytes(lambda data, chance: data[: chance.randrange(len(data))]),
    "extended": _bytes(lambda data, chance: data + chance.randbytes(chance.randint(1, 5000))),
    "begun with other bytes": _bytes(lambda data, chance: chance.randbytes(chance.randint(1, 50)) + data),
    "stretch of zeros": _bytes(
        lambda data, chance: data[: (at := chance.randrange(len(data)))] + bytes(9) + data[at + 9 :]
    ),
    "swapped": _bytes(lambda data, chance: _entries(data, chance, twice=False)),
    "doubled": _bytes(lambda data, chance: _entries(data, chance, twice=True)),
    "gzip": _bytes(lambda data, _chance: gzip.compress(data, mtime=0)),
    "empty": _bytes(lambda _data, _chance: b""),
    "text": _bytes(lambda _data, _chance: b"The cat sleeps .\n"),
    "pipe": _other(os.mkfifo),
    "folder": _other(os.mkdir),
    "link": _other(lambda path: path.symlink_to(path.parent.parent / f"old {path.name}")),
    "dangling link": _other(lambda path: path.symlink_to("nowhere")),
    "link to itself": _other(lambda path: path.symlink_to(path.name)),
}
if os.geteuid():  # root reads everything
    DAMAGES["unreadable"] = lambda path, _chance: path.chmod(0)


def files_case(case: Case) -> None:
    """Damage one file of a model, and run a command that reads it."""
    template = case.open_template()
    model = case.folder / "model"
    path = case.random.choice(sorted(path for path in model.rglob("*") if path.is_file() and path.suffix != ".svg"))
    damage = case.random.choice(sorted(DAMAGES))
    DAMAGES[damage](path, case.random)
    inside = path.relative_to(model)
    case.about = f"model {template}, {inside}: {damage}"
    command = list(READERS)[case.number % len(READERS)]
    compare(
        case, template, command, f"model/{npz_of(inside.name)}", inside.parts[0], changed=False, room=300 * MEGABYTE
    )


def npz_of(name: str) -> str:
    """Return the file of a model's folder that a command is to read where `name` is harmed."""
    return name if name.endswith(".npz") else "last.npz"


DEEP: list[Any] = []
for _ in range(600):
    DEEP = [DEEP]
WRONG = [None, True, False, -1, 0, 1, 1.5, 1e308, float("nan"), float("inf"), 10**30]
WRONG += ["x", "", "\x1b[31m", [], {}, [1], DEEP]

# Changes after which a model is another one and still a model, so that a command may give another result: other values
# of the same JSON type below these paths, and other finite numbers of the same dtype and shape in these arrays. What is
# not listed decides no result of that command, or contradicts something else in the file, and is to be refused. SHOWING
# are not listed, as they show what is there.
SHOWING = ("info", "curve", "report")
NUMBERS = ("parameters/", "average/", "optimizer/", "states", "owed")  # weights; what training remembers
CUTTING = ("model/carry_state", "tokenizer/")  # how texts are cut into words and sequences
RUN = ("origin/settings", "origin/history", "state/", "model/truncate", "vocabulary/counts")  # how training goes on
READING = (*NUMBERS, *CUTTING, "vocabulary/words")
LEGITIMATE = {
    **dict.fromkeys(("generate", "evaluate", "score", "rescore", "next", "pairs", "mix", "gradflow"), READING),
    "export": (*NUMBERS, "vocabulary", "model/carry_state", "model/truncate"),  # it writes settings too
    "trace": (*READING, "model/truncate"),
    "gradcheck": (*NUMBERS, "model/carry_state", "model/truncate"),
    "train": (*NUMBERS, *CUTTING, *RUN),
}


def unpack(data: bytes) -> dict[str, bytes]:
    """Return the entries of a zip archive."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pack(entries: Any, compression: int = zipfile.ZIP_STORED) -> bytes:
    """Return a zip archive of pairs of names and contents."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression, compresslevel=1) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that stand twice
        for name, content in entries:
            archive.writestr(name, content)
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    """Return an array as a file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def header(descr: str, shape: tuple[int, ...], filling: int = 0) -> bytes:
    """Return the beginning of an array's file that promises what does not follow, with that many blanks in it."""
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}" + " " * filling + "\n"
    return b"\x93NUMPY\x02\x00" + len(text).to_bytes(4, "little") + text.encode()


def _with(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        changed = array.copy()
        changed.flat[changed.size // 2] = value if changed.dtype.kind == "f" else np.iinfo(changed.dtype).max
        return changed

    return change


ARRAYS: dict[str, Callable[[np.ndarray], Any]] = {
    **{
        dtype: lambda array, dtype=dtype: array.astype(dtype)
        for dtype in ("f8", "f2", "i4", "u1", ">f4", "?", "c8", "U9")
    },
    "dtype object": lambda array: header("|O", array.shape) + array.tobytes(),
    "records": lambda array: array.view([("x", array.dtype)]),
    "scalar": lambda array: array.reshape(-1)[0],
    "flat": lambda array: array.reshape(-1),
    "another axis": lambda array: array[..., None],
    "transposed": lambda array: array.T,
    "one row": lambda array: array[:1],
    "one column": lambda array: array[..., :1],
    "a row less": lambda array: array[:-1],
    "no rows": lambda array: array[:0],
    "NaN": _with(float("nan")),
    "inf": _with(float("-inf")),
    "1e38": _with(1e38),
    "negated": np.negative,
    "Fortran order": np.asfortranarray,
    "header of 5 MB": lambda array: header(array.dtype.str, array.shape, 5 * MEGABYTE) + array.tobytes(),
    "promise of a terabyte": lambda array: header(array.dtype.str, (2**38, 1)) + array.tobytes(),
    "no array": lambda array: b"",
}


def values_case(case: Case) -> None:
    """Change one value of a model's file, and run a command that reads it."""
    template, chance = case.open_template(), case.random
    path = case.folder / "model" / chance.choice(["best.npz", "last.npz", "last.npz"])
    if not path.exists():
        path = path.with_name("last.npz")
    command = chance.choice(list(READERS)) if path.name == "last.npz" else chance.choice(list(READERS)[:-1])
    entries, room = unpack(path.read_bytes()), 300 * MEGABYTE
    change = chance.choices([_no_change, _change_json, _change_array, _change_archive], [1, 60, 30, 9])[0]
    what, where, plausible, data = change(entries, chance, case.world.heavy)
    if "zeros" in what:
        room = min(room, 25 * MEGABYTE)
    path.write_bytes(data)
    case.about = f"model {template}, {path.name}: {what}"
    plausible = plausible or where.startswith("tokenizer/words")  # text, of which any length and any letter is one
    changed = command in SHOWING or (plausible and where.startswith(LEGITIMATE[command]))
    outcome = compare(case, template, command, f"model/{path.name}", path.name, changed, room)
    if change is _no_change and outcome.code != 0:  # then all changes would be refused, and nothing would be fuzzed
        case.fault("is refused although nothing was changed", (command,), outcome)


Change = tuple[str, str, bool, bytes]  # what was done, to which value, whether of the same kind, and the archive then


def _no_change(entries: dict[str, bytes], _chance: random.Random, _heavy: bool) -> Change:
    return "made anew", "", False, pack(entries.items())


def _change_json(entries: dict[str, bytes], chance: random.Random, _heavy: bool) -> Change:
    about = json.loads(np.load(io.BytesIO(entries["rnnlm.npy"])).tobytes())
    parent, steps = about, []
    while True:
        keys = range(len(parent)) if isinstance(parent, list) else sorted(parent)
        steps.append(chance.choice(keys))
        old = parent[steps[-1]]
        if not (isinstance(old, dict | list) and old) or chance.random() < 0.1:
            break
        parent = old
    key, where, new = steps[-1], "/".join(map(str, steps)), None
    how = chance.choice(["becomes"] * 9 + ["is removed", "has a new neighbor", "is renamed"])
    if how == "becomes":
        like = [float(old), str(old), old + 0.5, -old] if type(old) in (int, float) else [str(old), [old]]
        new = parent[key] = chance.choice(WRONG + like)
    elif how == "has a new neighbor":
        parent.append(old) if isinstance(parent, list) else parent.update(surprise=old)
    else:
        del parent[key]
        if how == "is renamed" and isinstance(parent, dict):
            parent[f"{key}x"] = old
    data = npy(np.frombuffer(json.dumps(about).encode(), np.uint8))
    free = where.startswith("tokenizer/punkt/")  # sets and tables of words, which may hold any
    plausible = free if how != "becomes" else same_kind(old, new)
    return f"{where} {how} {new!r:.40}", where, plausible, pack({**entries, "rnnlm.npy": data}.items())


def same_kind(old: Any, new: Any) -> bool:
    """Say whether a value of JSON may stand in the place of another as far as its type goes."""
    if old is None:  # where nothing is set, a number or a path may be
        return type(new) in (int, float, str)
    if isinstance(old, float):
        return type(new) in (int, float)
    return type(old) is type(new)


def _change_array(entries: dict[str, bytes], chance: random.Random, _heavy: bool) -> Change:
    name = chance.choice(sorted(entries))
    how = chance.choice(sorted(ARRAYS))
    old = np.load(io.BytesIO(entries[name]))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of numbers that a type cannot hold
        new = ARRAYS[how](old)
    plausible = False
    if isinstance(new, np.ndarray) and (new.dtype, new.shape) == (old.dtype, old.shape):
        plausible = bool(np.isfinite(new).all() and (new.dtype.kind == "f" or (new >= 0).all()))
    data = new if isinstance(new, bytes) else npy(np.asanyarray(new))
    return f"{name} as {how}", name, plausible, pack({**entries, name: data}.items())


def _change_archive(entries: dict[str, bytes], chance: random.Random, heavy: bool) -> Change:
    name, other = chance.sample(sorted(entries), 2)
    how = chance.choice(["entry of zeros", "compressed", "zeros behind", "missing", "renamed", "twice", "other order"])
    zeros, packed = 2**31 if heavy and chance.random() < 0.1 else 50 * MEGABYTE, zipfile.ZIP_DEFLATED
    items = list(entries.items())
    if how == "entry of zeros":
        items.append((chance.choice(["extra.npy", "extra"]), header("|u1", (zeros,)) + bytes(zeros)))
    elif how == "zeros behind":
        items = [(key, value + bytes(zeros) if key == name else value) for key, value in items]
    elif how in ("missing", "renamed"):
        items = [(key + "x" if key == name else key, value) for key, value in items if how == "renamed" or key != name]
    elif how == "twice":
        items.append((name, entries[other]))
    elif how == "other order":
        chance.shuffle(items)
    data = pack(items, zipfile.ZIP_STORED if how in ("missing", "renamed", "twice", "other order") else packed)
    return f"{name}: {how}", "", False, data
