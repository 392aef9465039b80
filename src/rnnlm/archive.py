"""An `.npz` with one entry of JSON: written whole or not at all, read with no trust in what it says of itself.

The JSON is read first, under a cap; then the arrays that the caller names, each only if its type and shape are those
that the caller expects, and to its end, where zipfile compares the checksum. All that is read together is no more than
the file has, so that none of it counts twice. So memory never exceeds that of a sound file by much, whatever else is in
the archive, and whatever sizes it claims.
"""

from __future__ import annotations

import io
import json
import math
import os
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import DTypeLike

from rnnlm.checking import Unfit
from rnnlm.errors import ModelError, RnnlmError
from rnnlm.files import open_plain, reason, replacing
from rnnlm.model import Array

ABOUT = "rnnlm"  # the entry of JSON
ABOUT_LIMIT = 2**23  # bytes of it; parsed, they may be twenty times as many
BLOCK = 2**20  # bytes read at once; zipfile reads its list of entries at once
REMEDY = "make room or name another --model"  # where a file of a model cannot be written


class Archive:
    """An archive opened for reading. It raises ValueError, or what zipfile raises, where the file is not a sound one.

    Arguments:
        file: the open file.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._left = os.fstat(file.fileno()).st_size  # bytes that are not read yet
        self._zip = zipfile.ZipFile(_Frugal(file))
        entries = self._zip.namelist()
        if len(set(entries)) < len(entries):
            raise ValueError("it has two entries of one name")
        self.names = {name.removesuffix(".npy") for name in entries}

    def about(self) -> Any:
        """Return what the entry of JSON holds."""
        return json.loads(self.array(ABOUT, np.uint8, None, ABOUT_LIMIT).tobytes())

    def described(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Return the shape and the type that an array's header declares, of which nothing is believed yet."""
        with self._zip.open(f"{name}.npy") as entry:
            shape, _, kind = _header(entry)
            return shape, kind

    def array(self, name: str, dtype: DTypeLike, shape: tuple[int, ...] | None, limit: int = 0) -> Array:
        """Return an array of just this type and shape; where `shape` is None, of one dimension and at most `limit`."""
        try:
            info = self._zip.getinfo(f"{name}.npy")
        except KeyError:
            raise ValueError(f"its entry {name} is missing") from None
        self._left -= info.file_size
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"its entry {name} is compressed, as np.savez leaves none")
        if self._left < 0:
            raise ValueError(f"its entry {name} is longer than the file")
        with self._zip.open(info) as entry:
            dims, fortran, kind = _header(entry)
            if kind != np.dtype(dtype) or (dims != shape if shape is not None else len(dims) != 1):
                wanted = f"{np.dtype(dtype)} of shape {shape}" if shape is not None else f"{np.dtype(dtype)} in a row"
                raise ValueError(f"its entry {name} is {kind} of shape {dims} and not {wanted}")
            size = math.prod(dims) * kind.itemsize
            if size != info.file_size - entry.tell() or (shape is None and size > limit):
                raise ValueError(f"its entry {name} has {info.file_size:,} bytes, which is not its size")
            array = np.empty(dims[::-1] if fortran else dims, kind)
            left = memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]  # arrays are buffers
            while left:
                block = entry.read(min(BLOCK, len(left)))
                if not block:
                    raise EOFError
                left[: len(block)] = block
                left = left[len(block) :]
            entry.read(1)  # at the end the checksum is compared
        return np.ascontiguousarray(array.T) if fortran else array


class _Frugal(io.RawIOBase):
    """A file that never returns more than BLOCK bytes at once, whatever length a list of entries claims."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        """Return the next `size` bytes, or all; raises ValueError where these are too many."""
        block = self._file.read(BLOCK + 1 if size < 0 else min(size, BLOCK + 1))
        if len(block) > BLOCK:
            raise ValueError("its list of entries is too long")
        return block

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


def _header(entry: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return the shape, whether columns come first, and the type that an array's header declares."""
    if npy.read_magic(entry) != (1, 0):
        raise ValueError("an array is of another format")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return npy.read_array_header_1_0(entry, max_header_size=2**12)


@contextmanager
def reading(path: Path) -> Iterator[Archive]:
    """Open an archive. Raises ModelError, in a sentence that names the file, where it is not there or not sound."""
    try:
        with open_plain(path) as file:
            if file.read(4) != b"PK\x03\x04":
                raise foreign(path)
            with sound(path):
                yield Archive(file)
    except FileNotFoundError:
        remedy = "train one with `rnnlm train` or name another"
        raise ModelError(f"{path}: there is no model here; {remedy}") from None
    except OSError as error:
        remedy = "see to its permissions, or name another"
        raise ModelError(f"{path}: cannot be read ({reason(error)}); {remedy}") from None


@contextmanager
def sound(path: Path) -> Iterator[None]:
    """Say of a file, in one sentence, what is wrong with it."""
    try:
        yield
    except (ModelError, OSError, MemoryError):
        raise
    except (Unfit, RnnlmError) as error:
        raise ModelError(f"{path}: is damaged: {error}; use another copy of it, or train again") from error
    except Exception as error:  # whatever a damaged archive makes zipfile, numpy or json raise
        details = f": {error}" if type(error) is ValueError else ""
        raise ModelError(
            f"{path}: is damaged or incomplete{details}; use another copy of it, or train again"
        ) from error


def write(path: Path, about: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Replace the file by an archive of this JSON and these arrays. Raises ModelError where it cannot be written."""
    text = json.dumps(about, ensure_ascii=False, separators=(",", ":"), default=_plain_path).encode(
        "utf-8", "surrogatepass"
    )
    if len(text) > ABOUT_LIMIT:
        raise ModelError(
            f"{path}: would say more than {ABOUT_LIMIT:,} bytes of itself; give --eval-every a higher number"
        )
    with replacing(path, ModelError, REMEDY) as file:
        entries: dict[str, Any] = {ABOUT: np.frombuffer(text, np.uint8), **arrays}
        np.savez(file, **entries)


def _plain_path(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no place in JSON")


def foreign(path: Path) -> ModelError:
    """Return what is raised for a file of another kind."""
    if path.name.endswith((".toml", ".arpa", ".arpa.gz")):
        return ModelError(f"{path}: is no network; n-gram models and mixtures are for score, rescore, evaluate, next")
    remedy = "name a model's folder or its .npz with --model; rnnlm import takes over those of other tools"
    return ModelError(f"{path}: is not a model of rnnlm; {remedy}")
