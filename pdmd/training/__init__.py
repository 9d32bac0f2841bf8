"""The training of phases: trainer, optimizers, averages, checkpoints and records."""
