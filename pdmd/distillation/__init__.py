"""Phased DMD: phases, experts, adapters, students and the distillation itself."""
