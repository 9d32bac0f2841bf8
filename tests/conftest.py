import os

# oneDNN's bfloat16 convolutions for AMX read memory that nobody wrote at some tiny shapes, such as
# 48 channels of 3 x 4 x 2, and return NaN; its other kernels do not.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")


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
