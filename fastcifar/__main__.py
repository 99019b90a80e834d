"""`python -m fastcifar`."""

from fastcifar.cli.app import main

main()
