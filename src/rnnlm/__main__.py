"""`python -m rnnlm` is the same as `rnnlm`."""

from rnnlm.cli import main

main()
