"""Monitoring: NFE accounting, health, calibration and recorders."""
