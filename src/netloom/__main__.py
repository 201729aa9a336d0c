"""`python -m netloom` is the `netloom` command."""

from netloom.cli import main

main()
