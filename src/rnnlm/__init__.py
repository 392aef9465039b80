"""Word-level recurrent language models, trained from the command line on numpy alone.

What a program may want is here: `load_model` reads a model; `begin`, `resume` and `follow` train one, with the settings
in `RunSettings`, in a `ModelFolder`, on the threads of `working`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # so that a program's type checker knows what `__getattr__` will give
    from rnnlm.run import ModelFolder, RunSettings, begin, follow, load_model, resume, working

__version__ = "0.1.0"
__all__ = ["ModelFolder", "RunSettings", "begin", "follow", "load_model", "resume", "working"]


def __getattr__(name: str) -> Any:
    """Load what is offered when it is asked for: `rnnlm --help` shall not wait for numpy."""
    if name not in __all__:
        raise AttributeError(f"module 'rnnlm' has no attribute {name!r}")
    return getattr(importlib.import_module("rnnlm.run"), name)
