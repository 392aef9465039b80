"""Word-level recurrent language models, trained from the command line on numpy alone."""

__version__ = "0.1.0"
