"""Diffusion models: schedules, predictions, denoisers, solvers, routers and sampling."""
