"""Peak memory of the last part of a computation.

Storages are counted, not the profiler's events: memory that a thread of gloo releases is missing
from those, so that the profiler's count grows with every collective.
"""

import gc

from torch import Tensor, UntypedStorage
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operations return, after every operation."""

    def __init__(self):
        super().__init__()
        self.storages = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # its local operations arrive here
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor):
                storage = x.untyped_storage()
                self.storages[storage._cdata] = StorageWeakRef(storage)
        self.peak = max(self.peak, self._live())
        return result

    def _live(self):
        total = 0
        for key, reference in list(self.storages.items()):
            storage = UntypedStorage._new_with_weak_ptr(reference.cdata)
            if storage is None:
                del self.storages[key]
            else:
                total += storage.nbytes()  # FSDP empties storages that it keeps
        return total


def peak_of_last(first, last):
    """Returns the peak bytes of tensors during ``last(first())``, those of ``first`` included."""
    gc.collect()
    with LiveBytes() as memory:
        kept = first()
        gc.collect()
        memory.peak = 0
        last(kept)
    return memory.peak
