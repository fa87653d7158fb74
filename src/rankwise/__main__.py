"""`python -m rankwise`."""

from rankwise.cli.app import main

main()
