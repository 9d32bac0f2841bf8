"""Peak memory of the last part of a computation."""

import gc
import os

from torch.profiler import ProfilerActivity, profile, record_function


def peak_of_last(first, last):
    """Returns the peak bytes of tensors during ``last(first())``, those of ``first`` included."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    gc.collect()  # memory of before that is freed meanwhile would count as negative
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = first()
        gc.collect()
        with record_function("the last part"):
            last(kept)
    events = profiler.profiler.kineto_results.events()
    start = next(e.start_ns() for e in events if e.name() == "the last part")
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live) if event.start_ns() >= start else live
    return peak
