"""Word-level recurrent language models, trained on numpy alone, from the command line or from Python.

`load` reads a model, which can be asked; `train` trains one; errors are RnnlmErrors. docs/python.md shows all of it.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from rnnlm.errors import UNIX_ONLY, RnnlmError

if TYPE_CHECKING:  # so that a program's type checker knows what `__getattr__` will give
    from rnnlm.api import Evaluation, Listener, Model, NoPicture, Progress, Started, Stopped, load, train

__version__ = "0.1.0"
__all__ = ["Evaluation", "Listener", "Model", "NoPicture", "Progress", "RnnlmError", "Started", "Stopped"]
__all__ += ["load", "train"]


def __getattr__(name: str) -> Any:
    """Load what is offered when it is asked for: `rnnlm --help` shall not wait for numpy."""
    if name not in __all__:
        raise AttributeError(f"module 'rnnlm' has no attribute {name!r}")
    if sys.platform == "win32":
        raise RnnlmError(UNIX_ONLY)
    return getattr(importlib.import_module("rnnlm.api"), name)


def __dir__() -> list[str]:
    return __all__
