"""The columns of the evidence page: their titles, and the sentences that explain them."""

__all__ = ["COLUMNS", "RANGES", "explain"]

COLUMNS = {  # metric: its title, and what it is
    "n": ("n", "the number of seeds (figures are mean ± standard deviation)"),
    "trajectory_rmse": (
        "trajectory RMSE",
        "the root mean square error of the student's trajectories (lower is better)",
    ),
    "klh": (
        "klh",
        "the KL divergence of the samples' histogram over modes from a uniform one "
        "(lower is better)",
    ),
    "sw2": ("sw2", "the sliced Wasserstein distance to the exact law (lower is better)"),
    "modes": ("modes", "the fraction of the modes that samples reach (1 is all)"),
    "log_likelihood_gap": (
        "log-likelihood",
        "the samples' mean log-likelihood minus that of the exact law (0 is exact)",
    ),
    "feature_distance": (
        "fidT",
        "the Frechet distance to the teacher's samples, "
        "in features of a small classifier (lower is better)",
    ),
    "feature_distance_real": ("fidR", "the same to real images"),
    "cosine": (
        "cosine",
        "the mean cosine of pixels between samples of one class (lower is more diverse, and "
        "the teacher's is the target)",
    ),
    "coverage": (
        "coverage",
        "the fraction of the reference with a sample nearby (higher is better)",
    ),
    "precision": ("precision", "the fraction of samples near the reference (higher is better)"),
    "accuracy": ("accuracy", "the share of samples that show their prompt"),
    "vendi": (
        "Vendi",
        "the effective number of different samples of a prompt (higher is more diverse)",
    ),
    "faces": ("faces", "the effective number of typefaces of a prompt, 12 at most"),
    "relative_flow": ("flow", "the mean speed of motion over the teacher's (1 is the teacher's)"),
    "flow_spread": (
        "spread",
        "the variance of velocities within a prompt over the teacher's (1 is the teacher's)",
    ),
    "directions": ("directions", "the effective number of directions within a prompt, 8 at most"),
    "held_out_feature_distance": ("fidT, held out", "fidT with prompts of no training"),
    "held_out_vendi": ("Vendi, held out", "the Vendi score with prompts of no training"),
    "boundary_1": (
        "error at $t_1$",
        "the distance of the student's samples there to the teacher's diffused ones, over that "
        "of two draws of the teacher (1 is no error)",
    ),
    "boundary_2": ("$t_2$", "the same at the second boundary"),
    "boundary_3": ("$t_3$", "the same at the third"),
    "ratio": (
        "ratio",
        "the trainer's seconds a cycle over those of a hand-written loop, in the median",
    ),
    "pdmd_ms": ("pdmd, ms", "milliseconds of the trainer's cycle"),
    "bare_ms": ("bare, ms", "milliseconds of the hand-written loop's cycle"),
    "cycles_per_second": ("cycles/s", "cycles per second"),
    "speed": (
        "speed",
        "cycles per second over those of the reference, the first method of each comparison (the "
        "median over rounds)",
    ),
    "peak_mib": ("peak, MiB", "the peak memory in MiB, of 1024 x 1024 bytes"),
    "bound_mib": ("bound, MiB", "a rank's share of what is kept, two units and 300 MiB"),
    "kept_mib": (
        "kept, MiB",
        "what all ranks keep together: weights, gradients, moments and averages of every role, "
        "and finished experts",
    ),
    "unit_mib": ("unit, MiB", "the largest block, or what is outside of the blocks, in float32"),
    "memory": ("memory", "the same over the reference's"),
    "evaluations": ("evaluations", "forward equivalents a cycle (a backward pass is two)"),
    "fake_updates": ("fake updates", "updates of the fake score a cycle"),
    "nfe": ("NFE", "the number of network evaluations a sample takes"),
    "forwards": (
        "forwards",
        "the cost of the whole training in forward equivalents of one batch "
        "(a backward pass is two)",
    ),
    "saved_mib": (
        "MiB",
        "the activations stored for one recorded rollout, in MiB, of 1024 x 1024 bytes",
    ),
}
RANGES = {  # lower end: its upper end, the title of both, and what they are
    "ratio_low": ("ratio_high", "quartiles", "between the quartiles of the ratio over rounds"),
    "speed_low": ("speed_high", "quartiles", "between the quartiles of the speed over rounds"),
    "median_low": (
        "median_high",
        "95 % interval",
        "in which the median speed lies",
    ),
}


def explain(metrics):
    """Returns the sentences below a table, one a column."""
    parts = [f"*{COLUMNS[m][0]}* is {COLUMNS[m][1]}." for m in metrics if m in COLUMNS]
    parts += [f"*{RANGES[m][1]}* is the range {RANGES[m][2]}." for m in metrics if m in RANGES]
    return " ".join(parts)
