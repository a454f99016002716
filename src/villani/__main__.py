"""`python -m villani`."""

from villani.cli import main

main()
