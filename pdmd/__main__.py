"""Runs the command line as ``python -m pdmd``."""

from pdmd.cli import main

raise SystemExit(main())
