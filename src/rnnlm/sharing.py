"""A run from its beginning to its end, on one process or on several ranks, which the first begins for all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from pathlib import Path

from rnnlm.checkpoint import ModelFolder, SavedModel
from rnnlm.corpus import Corpus, reopen
from rnnlm.entries import NAMES
from rnnlm.errors import SettingsError
from rnnlm.files import reason
from rnnlm.model import Workspace
from rnnlm.ranks import Ranks
from rnnlm.run import Event, Listener, Run, Started, computing, follow, stepped
from rnnlm.settings import SaveEvery

Corpora = tuple[Corpus, Corpus]


def train_to_end(
    folder: ModelFolder,
    start: Callable[[], Run],
    resumed: bool,
    threads: int,
    save_every: SaveEvery,
    listener: Listener,
    ranks: Ranks,
    scratch: str | None,
) -> Generator[Event]:
    """Begin or resume a run by `start`, and yield what happens as `follow` does; each rank calls this."""
    with closing(Workspace(threads)) as work, ExitStack() as held:

        def begun() -> Run:
            held.enter_context(folder.held())
            return start()

        with computing():
            run = _shared(begun, folder, scratch, ranks)
        before, run.state.ranks = run.state.ranks, ranks.size
        yield Started(run, resumed, before)
        yield from stepped(follow(run, folder, work, save_every, listener, ranks))


def _shared(start: Callable[[], Run], folder: ModelFolder, scratch: str | None, ranks: Ranks) -> Run:
    """Begin or resume a run on the first rank, and return on each the run with the states of its streams.

    `scratch` is where nodes that do not see the folder keep a copy of the encoded text; it goes when it is opened.
    Raises what `start` raises, and SettingsError where a rank cannot have the text; then all ranks raise it.
    """
    if ranks.size == 1:
        return start()
    begun: list[Run] = []

    def begin() -> tuple[object, SavedModel]:
        begun.append(start())
        return begun[0].state, begun[0].saved

    state, saved = ranks.first(begin)
    corpora = (begun[0].corpus, begun[0].valid) if begun else _opened(folder.path, saved)
    run = Run(state, saved, *_fetched(corpora, folder, saved, scratch, ranks))  # type: ignore[arg-type]  # a state
    if run.state.states is not None:
        own = ranks.columns(run.state.states.shape[2])
        run.state.states = run.state.states[:, :, own].copy()
    return run


def _opened(place: Path, saved: SavedModel) -> Corpora | None:
    """Open the encoded texts of a run, as they are in a folder; None where they are not."""
    return reopen(place, *saved.origin.keys, saved.vocabulary)


def _fetched(
    corpora: Corpora | None, folder: ModelFolder, saved: SavedModel, scratch: str | None, ranks: Ranks
) -> Corpora:
    """Return the texts; where ranks do not see them, the first rank of each of their nodes gets a copy for all there.

    The whole texts go there, of 4 bytes a word: which sentences a rank reads changes from epoch to epoch.
    """
    wanting = ranks.all(None if corpora else os.uname().nodename)
    if not any(wanting):
        return _all_of(corpora, ranks, folder.name)
    host = next(filter(None, wanting))
    if any(ranks.all(corpora is None and scratch is None)):
        message = f"{host} does not see the encoded text in {folder.path}; go on with --resume and --scratch, a folder"
        raise SettingsError(f"{message} of each machine's own, or train in a folder that all of them share")
    takes = corpora is None and wanting.index(os.uname().nodename) == ranks.rank
    place, failure = _made(scratch) if takes and scratch else (None, None)
    try:
        failures = [found for found in ranks.all(failure) if found]
        if failures:
            raise SettingsError(failures[0])
        places = ranks.all(place)
        files = [(path, f"{name}/{path.name}") for name in NAMES for path in sorted((folder.path / name).glob("*"))]
        ranks.copy(files if ranks.rank == 0 else (), place)
        if corpora is None:
            copied = places[wanting.index(os.uname().nodename)]
            corpora = _opened(copied, saved) if copied else None
        return _all_of(corpora, ranks, folder.name)
    finally:
        if place is not None:
            shutil.rmtree(place, ignore_errors=True)  # what is mapped outlives its name


def _made(scratch: str) -> tuple[Path | None, str | None]:
    """Make a folder for a copy, in another; return it, or what failed."""
    import tempfile

    try:
        return Path(tempfile.mkdtemp(prefix="rnnlm-", dir=scratch)), None
    except (OSError, ValueError) as error:
        why = reason(error) if isinstance(error, OSError) else "there is no such path"
        message = f"{scratch}: cannot be written on {os.uname().nodename} ({why})"
        return None, f"{message}; name another folder with --scratch"


def _all_of(corpora: Corpora | None, ranks: Ranks, name: Path) -> Corpora:
    """Return the texts where all ranks have them."""
    lacking = [host for host in ranks.all(None if corpora else os.uname().nodename) if host]
    if lacking or corpora is None:
        raise SettingsError(f"the encoded text of {name} cannot be read on {lacking[0]}; see to its disk, and resume")
    return corpora
