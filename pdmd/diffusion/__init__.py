"""What a diffusion model is: schedules, predictions, denoisers, solvers and sampling."""
