import os

import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "pdmd",
    derandomize=True,
    deadline=None,
    max_examples=int(os.environ.get("PDMD_EXAMPLES", "60")),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
settings.load_profile("pdmd")
torch.set_num_threads(int(os.environ.get("PDMD_THREADS", "1")))
