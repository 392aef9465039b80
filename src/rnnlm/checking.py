"""Dataclasses that believe nothing: constructors compare every value with its field's annotation.

    @dataclass(frozen=True)
    class Pair(Settings):
        hidden: Annotated[int, Range(1)] = 100
        names: tuple[str, ...] = ()

`Pair(hidden=0)` raises SettingsError; `restore(Pair, {"hidden": 8.0, "names": []}, "pair")`, for values that a file
holds, raises Unfit, which names the field. Nothing is guessed: 8.0 is no whole number, and true is no number.
"""

from __future__ import annotations

import math
import operator
import os
import reprlib
from dataclasses import Field, dataclass, fields, is_dataclass
from numbers import Real
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from rnnlm.errors import SettingsError

Type = TypeVar("Type")

_KINDS: dict[Any, dict[str, Any]] = {}
# what is no option of the command line, or is called otherwise there
ARGUMENTS = {"initial": "--from", "corpus": "the corpus", "file": "a file", "prompt": "the text"}
_brief = reprlib.Repr()
_brief.maxlevel, _brief.maxlist, _brief.maxtuple, _brief.maxdict, _brief.maxstring = 2, 3, 3, 2, 40


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`; `above` and `below` leave that end itself out. Only if `infinite`, infinity."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    infinite: bool = False

    def holds(self, number: float) -> bool:
        """Say whether a number lies in the range."""
        over = number > self.low if self.above else number >= self.low
        under = number < self.high if self.below else number <= self.high
        return over and under and (self.infinite or abs(number) != math.inf)

    def __str__(self) -> str:
        low = f"{'above' if self.above else 'from'} {_written(self.low)}"
        if self.high == math.inf:
            return low if self.above else f"{low} upwards"
        return f"{low}{' and' * self.above} {'to below' if self.below else 'up to'} {_written(self.high)}"


def _written(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"


class Unfit(ValueError):  # noqa: N818 -- it says what the value is
    """A value that is not what its field holds; the sentence names the field."""

    def __init__(self, name: str, value: object, wanted: str) -> None:
        self.name, self.value, self.wanted = name, value, wanted
        super().__init__(f"{name} is {brief(value)}, where {wanted} must stand")


def flag(name: str) -> str:
    """Return a setting's name as the command line writes it."""
    return "--" + name.replace("_", "-")


def brief(value: object) -> str:
    """Return a value as a sentence can hold it."""
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a number of more than 20 digits"
    return ascii(_brief.repr(value)) if isinstance(value, bytes) else _brief.repr(value)


class Checked:
    """A dataclass whose constructor checks types and ranges, and then what `check` says of the whole.

    Raises Unfit, which names the field.
    """

    def __post_init__(self) -> None:
        """Put the value that each field takes in the place of the one that was given."""
        for item in _fields(type(self)):
            value = self.take(kinds(type(self))[item.name], getattr(self, item.name), item.name)
            object.__setattr__(self, item.name, value)  # frozen ones too: it is not the user who changes it
        self.check()

    @staticmethod
    def take(kind: Any, value: object, name: str) -> Any:
        """Return a value as a field of the type `kind` holds it."""
        return fit(kind, value, name)

    def check(self) -> None:
        """Raise ValueError or an RnnlmError where fields contradict each other."""


class Settings(Checked):
    """Checked fields that are options of the command line too. Raises SettingsError, which names the option."""

    @staticmethod
    def take(kind: Any, value: object, name: str) -> Any:
        """Do as `Checked` does, and take a single text where a list of them is wanted."""
        return fit_option(kind, value, name)


def kinds(of: Any) -> dict[str, Any]:
    """Return the annotation of each field."""
    return _KINDS.get(of) or _KINDS.setdefault(of, get_type_hints(of, include_extras=True))


def restore(of: type[Type], value: object, name: str, **given: Any) -> Type:
    """Make an object of the class `of` from a JSON object with exactly its fields, but for those that are given.

    `name` is where the object stands. Raises Unfit where a field is missing, unknown, or of another type or range, and
    what the constructor, or `check` of a class that has its fields checked, raises.
    """
    names = [item.name for item in _fields(of) if item.name not in given]
    if not isinstance(value, dict):
        raise Unfit(name, value, "an object")
    for key in [*names, *value]:
        if key not in value:
            raise Unfit(f"{name}.{key}", None, "a value")
        if key not in names:
            raise Unfit(f"{name}.{brief(key)}", value[key], "nothing")
    found = {key: fit(kinds(of)[key], value[key], f"{name}.{key}") for key in names} | given
    if not issubclass(of, Checked):
        return of(**found)
    made = of.__new__(of)  # its constructor would fit each value once more
    for key, item in found.items():
        object.__setattr__(made, key, item)
    made.check()
    return made


def _fields(of: Any) -> tuple[Field[Any], ...]:
    return fields(of)


def fit(kind: Any, value: object, name: str) -> Any:
    """Return a value as a field of the type `kind` holds it. Raises Unfit where it is of another type or range."""
    if get_origin(kind) is Annotated:
        kind, limits = get_args(kind)
    else:
        limits = None
    choices = get_args(kind)
    if NoneType in choices:  # X | None
        return None if value is None else fit(choices[0], value, name)
    if get_origin(kind) is Literal:
        return _one_of(choices, value, name)
    if get_origin(kind) is tuple:
        return _items(choices, value, name)
    if get_origin(kind) is list:
        return list(_items((*choices, ...), value, name))
    if get_origin(kind) is dict:
        return _mapping(choices, value, name)
    if is_dataclass(kind):
        return value if isinstance(value, kind) else restore(kind, value, name)  # type: ignore[arg-type]
    if kind not in _PLAIN:  # an object that is no value of JSON, such as an array
        return value if isinstance(value, get_origin(kind) or kind) else _refuse(name, value, kind)
    converted = _PLAIN[kind](value)
    if converted is None or (limits and not limits.holds(converted)):
        raise Unfit(name, value, f"{_NAMES[kind]} {limits or ''}".rstrip())
    return converted


def _refuse(name: str, value: object, kind: Any) -> Any:
    raise Unfit(name, value, f"a {getattr(kind, '__name__', kind)}")


def fit_option(kind: Any, value: object, name: str) -> Any:
    """Do as `fit`, and take a text where a list of them is wanted; raises SettingsError, which names the option."""
    if kind == tuple[str, ...] and isinstance(value, str | os.PathLike):
        value = (value,)
    try:
        return fit(kind, value, name)
    except Unfit as error:
        option = ARGUMENTS.get(error.name.partition("[")[0], flag(error.name))
        raise SettingsError(f"{option} is {brief(error.value)}; it takes {error.wanted}") from None


def _one_of(choices: tuple[Any, ...], value: object, name: str) -> Any:
    if isinstance(value, str) and value in choices:
        return value
    raise Unfit(name, value, f"one of {', '.join(choices)}")


def _items(kinds: tuple[Any, ...], value: object, name: str) -> tuple[Any, ...]:
    """Fit a list: of any length where `kinds` ends in `...`."""
    several = kinds[-1] is Ellipsis
    if not isinstance(value, list | tuple) or not (several or len(value) == len(kinds)):
        raise Unfit(name, value, "a list" if several else f"a list of {len(kinds)}")
    each = [kinds[0]] * len(value) if several else kinds
    return tuple(_fit_item(kind, item, name, at) for at, (kind, item) in enumerate(zip(each, value, strict=True)))


def _mapping(kinds: tuple[Any, ...], value: object, name: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise Unfit(name, value, "an object")
    return {key: _fit_item(kinds[1], item, name, key) for key, item in value.items()}


def _fit_item(kind: Any, item: object, name: str, key: object) -> Any:
    """Do as `fit`; that the item has a name costs time only where it is told."""
    try:
        return fit(kind, item, "")
    except Unfit as error:
        raise Unfit(f"{name}[{brief(key)}]{error.name}", error.value, error.wanted) from None


def _whole(value: object) -> int | None:
    try:
        return None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def _number(value: object) -> float | None:
    try:
        return float(value) if isinstance(value, Real) and not isinstance(value, bool) else None
    except OverflowError:
        return None


def _text(value: object) -> str | None:
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    return value if isinstance(value, str) and "\0" not in value else None


_PLAIN: dict[Any, Any] = {
    bool: lambda value: value if isinstance(value, bool) else None,
    int: _whole,
    float: _number,
    str: _text,
    Path: lambda value: Path(text) if (text := _text(value)) else None,
}
_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}
