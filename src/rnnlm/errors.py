"""Errors that a user can cause, each a single sentence that carries its remedy.

The command line prints the sentence and exits; a program may catch the class that it can handle.

    RnnlmError
    ├── TextError         a corpus cannot be read: encoding, reserved words, nothing in it
    ├── VocabularyError   a vocabulary cannot be made or read
    ├── ModelError        a model file is missing, damaged, foreign, of another format, or in the way
    ├── SettingsError     settings contradict each other, the data or the model
    └── DivergenceError   training left the numbers that float32 can hold, or got far worse than at its start
"""

UNIX_ONLY = "rnnlm runs on Linux, macOS and other Unix systems; on Windows, run it in WSL"


class RnnlmError(Exception):
    """Anything that a user can cause and mend."""


class TextError(RnnlmError):
    """A text cannot be used as it is; the message names the file and, where there is one, the line."""


class VocabularyError(RnnlmError):
    """A vocabulary cannot be made or read."""


class ModelError(RnnlmError):
    """A model's file cannot be used, or one is in the way of a new one."""


class SettingsError(RnnlmError):
    """Settings contradict each other, the data, or the model they are used with."""


class DivergenceError(RnnlmError):
    """Training has diverged; the best model so far, if there is one, is kept."""


def no_numbers(remedy: str = "train it again with a lower --lr") -> ModelError:
    """Return what is raised where probabilities are not finite."""
    return ModelError(f"the model's probabilities are no longer numbers; {remedy}")


def counted(number: int, thing: str) -> str:
    """Return a number of things in words: 1 epoch, 2 epochs."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
