"""The sections of a run's configuration, a file each."""
