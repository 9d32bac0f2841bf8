"""The command line: a file per command, its configuration and its runs."""
