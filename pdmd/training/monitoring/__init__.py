"""Monitoring: evaluations counted, health, calibration and records of a run."""
