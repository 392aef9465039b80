"""Word-level recurrent language models, trained on numpy alone, from the command line or from Python.

`load` reads a model, which can be asked; `train` trains one; errors are RnnlmErrors. docs/python.md shows all of it.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from rnnlm.errors import UNIX_ONLY
from rnnlm.errors import DivergenceError as DivergenceError
from rnnlm.errors import ModelError as ModelError
from rnnlm.errors import RnnlmError as RnnlmError
from rnnlm.errors import SettingsError as SettingsError
from rnnlm.errors import TextError as TextError
from rnnlm.errors import VocabularyError as VocabularyError

if TYPE_CHECKING:  # so that a program's type checker knows what `__getattr__` will give
    from rnnlm.api import Model as Model
    from rnnlm.api import load as load
    from rnnlm.api import train as train
    from rnnlm.mixing import Mixed as Mixed
    from rnnlm.mixing import mix as mix
    from rnnlm.mixture import Mixture as Mixture
    from rnnlm.mixture import open_scorer as open_scorer
    from rnnlm.run import Listener as Listener
    from rnnlm.run import NoPicture as NoPicture
    from rnnlm.run import Started as Started
    from rnnlm.run import Stopped as Stopped
    from rnnlm.text import Prompt as Prompt
    from rnnlm.training import Evaluation as Evaluation
    from rnnlm.training import Progress as Progress

__version__ = "0.1.0"

_HOMES = {
    "api": ("Model", "load", "train"),
    "mixing": ("Mixed", "mix"),
    "mixture": ("Mixture", "open_scorer"),
    "run": ("Listener", "NoPicture", "Started", "Stopped"),
    "text": ("Prompt",),
    "training": ("Evaluation", "Progress"),
}
_ERRORS = (DivergenceError, ModelError, RnnlmError, SettingsError, TextError, VocabularyError)
__all__ = [*(error.__name__ for error in _ERRORS), *(name for names in _HOMES.values() for name in names)]


def __getattr__(name: str) -> Any:
    """Load what is offered when it is asked for: `rnnlm --help` shall not wait for numpy."""
    for home, names in _HOMES.items():
        if name in names:
            if sys.platform == "win32":
                raise RnnlmError(UNIX_ONLY)
            return getattr(importlib.import_module(f"rnnlm.{home}"), name)
    raise AttributeError(f"module 'rnnlm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
