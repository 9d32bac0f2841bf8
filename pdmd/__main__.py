"""Runs the command line as ``python -m pdmd``."""

from pdmd.cli.main import main

raise SystemExit(main())
