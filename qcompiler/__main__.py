"""`python -m qcompiler`: the command line."""

from qcompiler.cli import main

main()
