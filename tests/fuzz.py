"""A fuzzer of the command line: `make fuzz`, or `python tests/fuzz.py --help`.

Five families of cases, all drawn from one seed: damaged files of a model, wrong values inside them, random command
lines, odd texts, and chains of kill and resume. A case is reproduced by its family and number: `--family values --only
17` prints what it is and keeps its folder.

Commands, their options, types and ranges are read from the click objects, and the fields that are changed from models
trained here, so that new ones are fuzzed without a change. `fuzz_harness.py` says what a fault is.
"""

import argparse
import gzip
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import click

from fuzz_damage import files_case, values_case
from fuzz_harness import (
    GRACE,
    KINDS,
    LIMIT,
    SMALL,
    TELLTALES,
    Case,
    Outcome,
    World,
    flat,
    leftovers,
    options,
    reached,
    run,
    sentences,
    snapshot,
    stop_at,
)
from rnnlm import cli

COUNTS = {"files": 400, "values": 2000, "lines": 1400, "texts": 2000, "chains": 28}  # cases of a round


# ---- family: random command lines ----------------------------------------------------------------------------------

STRINGS = ["", " ", "x", "the cat", "</s>", "<unk> cat", "utf-8", "latin-1", "utf-16", "rot13", "hex", "idna"]
STRINGS += ["undefined", "5", "0", "1m", "0m", "0.0001m", "9" * 400 + "m", "9" * 5000, "3s", "a\nb", "\x1b[31m"]
STRINGS += ["\u202e", "\udcff", "é" * 300, "--help", "-", "--", "*", "x" * 100_000, "٣", "٣m", "1e3m"]
NAMES = ["utf-8", "latin-1", "utf-16", "the cat"]
NUMBERS = [*map(str, range(13)), "100", "1000", "1001", "1024", "100000", "100001", "0.001", "0.1", "0.5", "0.999"]
NUMBERS += ["1.0", "1.5", "10.0", "1e-9", "1e30", "1e38", "5", "5m", "0.01m"]
NUMBERS_ODD = ["", " ", "x", "nan", "-inf", "1e400", "1e-400", "1e308", "-1", "-0", "+1", "0x10", "1_0", "٣", "１２"]
NUMBERS_ODD += ["½", "1.5", ".5", "1e0", " 3 ", "3\n", "9" * 5000, "9" * 30, "true", "2147483648"]
NUMBERS_ODD += ["18446744073709551616"]
PATHS = [
    "corpus.txt",
    "other.txt",
    "pairs.tsv",
    "lists.tsv",
    "model",
    "model/best.npz",
    "model/last.npz",
    "corpus.txt.gz",
    "new",
    "new/deeper",
]
PATHS_ODD = ["missing", "pipe", "folder", "", ".", "/dev/null", "/proc/version", "dangling", "loop", "x" * 300]
PATHS_ODD += ["a\nb", "\udcff", "é", "-", "corpus.txt/x", "empty.txt", "random", "config.toml"]
PATHS_ODD += ["model/history.jsonl", "model/encoded-train", "~"]
TOML = ["1", "-1", "0.5", "true", '"x"', '""', "[]", "{}", "1979-05-27", "07:32:00", "nan", "inf", "1e400", "[1, 2]"]
TOML += ['["a", "b"]', "9" * 5000, "9" * 30, "[" * 600 + "]" * 600, "[" * 5000, '"\\u0000"', '"\\u001b[31m"']
TOML += ["'''\nx'''", "0x10", "{a = 1}", "x", ""]
FRUGAL = {"--model": "model", "--hidden": "4", "--epochs": "1", "--threads": "1", "--count": "2", "--directions": "1"}


def takes(parameter: click.Parameter, value: str) -> bool:
    """Ask an option's own type whether it takes a value."""
    try:
        parameter.type.convert(value, parameter, click.Context(cli.commands))
    except click.ClickException:
        return False
    return True


def value_for(parameter: click.Parameter, chance: random.Random, share: float) -> str:
    """Return a value for an option: one of the odd ones in this share of cases, else one of those that it takes."""
    if chance.random() < share:
        return chance.choice(STRINGS + NUMBERS_ODD + PATHS_ODD)
    if takes(parameter, "two words"):  # a name or a path
        return chance.choice(PATHS + NAMES)
    values = getattr(parameter.type, "choices", None) or [value for value in NUMBERS if takes(parameter, value)]
    return chance.choice([*values] or NUMBERS)


def config(command: str, chance: random.Random) -> bytes:
    """Return a file of settings for a command: mostly its own options, with values of any kind."""
    if chance.random() < 0.15:
        odd = [
            b"",
            b"\xff\xfe",
            b"\xef\xbb\xbf",
            b"x",
            b"=",
            b"a.b = 1",
            b"hidden.x = 1\n",
            b"hidden = 1\nhidden = 2\n",
        ]
        return chance.choice([*odd, b"[a]\n" * 2, b"\0", b"a = '\x1b'", b"# x\r", chance.randbytes(50), b"[" * 3000])
    lines = []
    for _ in range(chance.randint(1, 4)):
        name, parameter = chance.choice(sorted(options(command).items()))
        key = chance.choice(
            [name.lstrip("-")] * 5 + [name, name.lstrip("-").replace("-", "_"), '""', '"a\\nb"', "é", "x" * 5000]
        )
        own = value_for(parameter, chance, 0.2).encode("utf-8", "replace").decode()
        lines.append(f"{key} = {chance.choice([own, json.dumps(own), chance.choice(TOML)])}\n")
    return "".join(lines).encode()


def lines_case(case: Case) -> None:
    """Run a random command with random options, in a folder with a model, texts and things that are neither."""
    case.about = f"model {case.open_template()}"
    chance, folder = case.random, case.folder
    commands = cli.commands.list_commands(click.Context(cli.commands))
    [command] = chance.choices(commands, [len(options(name)) for name in commands])
    known = options(command)
    furnish(folder, config(command, chance))
    arguments, share = [command, *flat(command, FRUGAL)], chance.choice([0, 0.3])
    for name, parameter in chance.sample(sorted(known.items()), chance.randint(0, min(5, len(known)))):
        if isinstance(parameter, click.Argument):
            arguments += [value_for(parameter, chance, share) for _ in range(chance.randint(0, 3))]
        elif parameter.is_flag:
            arguments.append(name)
        elif name == "--config":
            arguments += [name, chance.choice(["config.toml"] * 6 + PATHS_ODD)]
        else:
            arguments += [name, value_for(parameter, chance, share)]
    if "--overwrite" in known and chance.random() < 0.7:
        arguments += ["--model", "new"]
    if "--config" in known and chance.random() < 0.3:
        arguments += ["--config", "config.toml"]
    if any(isinstance(parameter, click.Argument) for parameter in known.values()) and chance.random() < 0.8:
        arguments.append("corpus.txt")
    if chance.random() < 0.05:
        arguments.insert(
            chance.randrange(len(arguments)), chance.choice(["--nothing", "-x", "--", "\udcff", "nothing", ""])
        )
    if "config.toml" in arguments:
        case.about += f", {(folder / 'config.toml').read_bytes()[:200]!r}"
    much = re.search(r"\d{4}|e\d|9m|pipe", repr((arguments, (folder / "config.toml").read_bytes())))
    stdin = chance.choice([os.devnull, str(folder / "corpus.txt"), str(folder / "random")])
    case.call(*arguments, limit=1.0 if much else LIMIT, stdin=stdin)


def furnish(folder: Path, settings: bytes) -> None:
    """Put things into a folder that are no text and no model."""
    (folder / "config.toml").write_bytes(settings)
    (folder / "corpus.txt.gz").write_bytes(gzip.compress((folder / "corpus.txt").read_bytes(), mtime=0))
    (folder / "empty.txt").touch()
    (folder / "random").write_bytes(random.Random(1).randbytes(3000))
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "loop").symlink_to("loop")


# ---- family: odd texts ---------------------------------------------------------------------------------------------

PIECES = ["the", "cat", "Mr.", ".", ". ", "\n", "\n\n", "\r\n", "\r", "\t", "\x85", "\u2028", "\u00a0", "\u3000"]
PIECES += ["\ufeff", "\x0c", "<unk>", "<UNK>", "</s>", "<s>", "``", "''", '"', "'", "”", "“", "...", "…", "(", "]"]
PIECES += ["%", "don't", "can't", "$5", "a--b", "\x00", "\x01", "\x1b[31m", "\x7f", "\x9b", "\u202e", "\u2066"]
PIECES += ["\u200b", "\u200d", "e\u0301", "\u0301", "\U0001f468\u200d\U0001f469", "İ", "ß", "ﬃ", "ǅ", "٣", "漢字"]
PIECES += ["\ufffe", "\ufdd0", "\U0010ffff", "\ud800", "-LRB-", "U.S.A.", "1,000.5", "?!", "</s>x"]
ENCODINGS = [*["utf-8"] * 6, "latin-1", "utf-16", "utf-16-le", "utf-32", "utf-8-sig", "cp1252", "shift_jis", "utf-7"]
ENCODINGS += ["koi8-r", "unicode_escape", "raw_unicode_escape", "punycode", "idna", "iso2022_jp", "hz", "cp037"]
ENCODINGS += ["ascii", "mbcs", "UTF8"]


def odd_text(chance: random.Random, encoding: str) -> bytes:
    """Return a text that nobody would write, or some text with a little of it inside."""
    kind, size = chance.randrange(8), chance.choice([1, 5, 50, 500])
    if kind == 0:
        return chance.randbytes(size * 4)
    if kind == 1:
        data = gzip.compress(sentences(size, chance).encode(), mtime=0)
        return data[: chance.randrange(len(data))] if chance.random() < 0.7 else data + chance.randbytes(9)
    if kind == 2:
        text = "".join(chr(chance.randrange(0x110000)) for _ in range(size))
    elif kind == 3:
        text = " ".join(
            chance.choice("ab.é'") * chance.choice([1, 9, 500, 500, 70_000]) for _ in range(chance.randint(1, 3))
        )
    elif kind == 4:
        text = "".join(chance.choice("\"'.`“”‘’?!()[]…-\n ") for _ in range(size))
    elif kind == 5:
        text = chance.choice(["", " ", "\n"]).join(chance.choices(PIECES, k=size))
    else:
        odd = chance.sample(PIECES, 3)
        text = "".join(chance.choice([f"{part} "] * 9 + odd) for part in sentences(size, chance).split(" "))
    try:
        return text.encode(encoding, "replace")
    except (LookupError, ValueError):
        return text.encode("utf-8", "surrogatepass")


READING = (  # commands that read a text, odd.txt, or a prompt
    *("evaluate odd.txt", "score --words odd.txt", "gradflow --lags 3 odd.txt", "report -o made.html odd.txt"),
    *("pairs odd.txt", "rescore --output made odd.txt", "mix odd.txt model", "import --model made odd.txt"),
    *("generate --count 2 --seed 1 --prompt=PROMPT", "next -- PROMPT", "trace --at 2 1 --terms -- PROMPT"),
)


def texts_case(case: Case) -> None:
    """Train on an odd text and use the model, or give the text to a command as a text or as a prompt."""
    chance, template = case.random, case.open_template()
    encoding = chance.choice(ENCODINGS)
    text = odd_text(chance, encoding)
    (case.folder / "odd.txt").write_bytes(text)
    flags = {name: None for name in ("--pretokenized", "--lowercase") if chance.random() < 0.4}
    asked = (
        {"--encoding": chance.choice([encoding] * 4 + ENCODINGS)}
        if encoding != "utf-8" or chance.random() < 0.1
        else {}
    )
    case.about = f"model {template}, {text[:60]!r}"
    reads, prompt = chance.choice(READING), text.decode("utf-8", "surrogateescape").replace("\0", "")
    command, *arguments = (part.replace("PROMPT", prompt) for part in reads.split(" "))
    chosen = {"--threads": "1", **flags, **asked}
    if case.number % 3 == 0:
        small = {"--hidden": "4", "--epochs": "1", "--model": "new"}
        if case.call("train", "odd.txt", *flat("train", {**chosen, **small}), guilty=r"odd\.txt|--").code != 0:
            return
        case.call("generate", "--model", "new", "--seed", "1", "--count", "3", "--allow-unk")
        case.call("info", "--model", "new")
        chosen |= {} if command == "import" else {"--model": "new"}
    case.call(command, *flat(command, chosen), *arguments, guilty="" if "PROMPT" in reads else r"odd\.txt|--")


# ---- family: chains of kill and resume -----------------------------------------------------------------------------

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def chains_case(case: Case) -> None:
    """Kill a training again and again, resume it until it is done, and compare with one that was never interrupted.

    Half the kills come at a random moment, half at a random operation on a file. Every second chain replaces an older
    model, whose `best.npz` must stay until the new one has been evaluated.
    """
    template, chance = case.open_template(case.random.choice(sorted(KINDS))), case.random
    folder, model = case.folder, case.folder / "model"
    corpus = case.folder / "corpus.txt"
    corpus.write_text(sentences(400, chance))
    chosen = {**SMALL, **KINDS[template], "--epochs": "3", "--seed": "5", "--eval-every": "17", "--save-every": "3"}
    if overwrite := case.number % 2 == 0:
        del chosen["--eval-every"]  # so that kills before the first evaluation are many
    arguments = ["train", "corpus.txt", *flat("train", chosen), "--model"]
    began = time.monotonic()
    case.call(*arguments, "reference")
    duration = time.monotonic() - began
    old = (model / "best.npz").read_bytes(), (model / "last.npz").read_bytes()
    if overwrite:
        arguments.insert(1, "--overwrite")
    else:
        shutil.rmtree(model)
    again = ["train", "--resume", *flat("train", {"--threads": "1", "--save-every": "3"})]
    for kill in reversed(range(chance.randint(2, 8))):
        stopped = (model / "last.npz").exists() and (model / "last.npz").read_bytes() != old[1]
        fresh = not stopped and not (model / "new.npz").exists()
        command = [*arguments, "model"] if fresh else [*again, "--model", "model"]
        outcome = killed(case, command, duration) if kill else case.call(*command)
        over = outcome.code == 0 or "finished" in outcome.err
        if overwrite and not over and not still_good(model / "best.npz", old[0]):
            case.fault("the older model is gone before the new one is evaluated", tuple(command), outcome)
        if over:
            break
    if not over or progress(model) != progress(folder / "reference"):
        case.fault("another result than without interruption", tuple(arguments), outcome)


def progress(model: Path) -> dict[str, object]:
    """Return all that a training has reached."""
    return reached(model, "best.npz", "last.npz")


def killed(case: Case, command: list[str], duration: float) -> Outcome:
    """Run a training that gets a signal somewhere, and look at how it ends."""
    chance, hook, moment = case.random, None, duration + GRACE
    number = chance.choice(SIGNALS)
    if chance.random() < 0.5:
        moment = 0.005 + chance.uniform(0, duration)
        case.about = f"{number.name} after {moment:.3f} s"
    else:
        event, count = chance.choice(["open", "os.rename", "os.remove"]), int(200 ** chance.random())
        hook = stop_at(event, "", count, number)
        case.about = f"{number.name} at {event} {count}"
    before = snapshot(case.folder)
    outcome = run(case.folder, command, limit=moment, hook=hook, number=number)
    if outcome.code not in (0, 130, -number) and "finished" not in outcome.err:
        case.fault(f"exit code {outcome.code}", tuple(command), outcome)
    if match := TELLTALES.search(outcome.err):
        case.fault(f"shows {match[0]!r}", tuple(command), outcome)
    if outcome.code >= 0 and (left := leftovers(before, snapshot(case.folder))):
        case.fault(f"leaves {left}", tuple(command), outcome)
    return outcome


def still_good(best: Path, old: bytes) -> bool:
    """Say whether a file is the older model, or a newer one that has been evaluated."""
    if not best.exists():
        return False
    if best.read_bytes() == old:
        return True
    described = run(best.parent, ["info", "--json", "--model", best.name])
    return described.code == 0 and json.loads(described.out)["valid_perplexity"] is not None


# ---- all of it -----------------------------------------------------------------------------------------------------

FAMILIES = {"files": files_case, "values": values_case, "lines": lines_case, "texts": texts_case, "chains": chains_case}


def fuzz(world: World, cases: list[tuple[str, int]], keep: bool) -> list[str]:
    """Run cases; returns their faults, each of which is printed at once."""
    faults = []
    for family, number in cases:
        case = Case(world, family, number)
        try:
            FAMILIES[family](case)
        except Exception:  # of the fuzzer itself, or of what it reads when all seemed well
            case.faults.append(f"{case.name}: {case.about}: {traceback.format_exc(limit=-3)}")
        for fault in case.faults:
            print(fault, flush=True)
        faults += case.faults
        if keep:
            print(f"{case.name}: {case.about}; its folder is {case.folder}")
        else:
            shutil.rmtree(case.folder, ignore_errors=True)
    return faults


def share(world: World, cases: list[tuple[str, int]], jobs: int) -> int:
    """Run cases in so many processes, every so-many-th in each; returns how many processes found faults."""
    children = []
    for job in range(jobs):
        pid = os.fork()
        if pid == 0:
            os._exit(bool(fuzz(world, cases[job::jobs], keep=False)))
        children.append(pid)
    return sum(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0 for pid in children)


def main() -> None:
    """Read the options, run the cases, and exit with 1 if there is a fault."""
    parser = argparse.ArgumentParser(description="Fuzz rnnlm's command line.")
    parser.add_argument("--seed", default="1", help="decides every case")
    parser.add_argument("--rounds", type=float, default=1.0, help=f"times these numbers of cases: {COUNTS}")
    parser.add_argument("--family", choices=FAMILIES, help="this family alone")
    parser.add_argument("--only", type=int, help="this case of the family alone, in a folder that is kept")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--heavy", action="store_true", help="let damaged archives unpack to 2 GB instead of 50 MB")
    chosen = parser.parse_args()
    families = [chosen.family] if chosen.family else list(FAMILIES)
    cases = [(name, number) for name in families for number in range(max(1, round(COUNTS[name] * chosen.rounds)))]
    sys.modules["matplotlib"] = None  # type: ignore[assignment]  # curves are pictures, and slow
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="rnnlm-fuzz-"))
    world = World(folder, chosen.seed, chosen.heavy)
    if chosen.only is not None:
        sys.exit(bool(fuzz(world, [(families[0], chosen.only)], keep=True)))
    faulty = share(world, cases, chosen.jobs)
    shutil.rmtree(folder, ignore_errors=True)
    print(f"{len(cases)} cases, {time.monotonic() - began:.0f} s: {'faults, above' if faulty else 'no fault'}.")
    sys.exit(bool(faulty))


if __name__ == "__main__":
    main()
