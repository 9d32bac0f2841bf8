"""Finds waits for the device, with the meta device in place of an accelerator."""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

META = torch.device("meta")


class Synchronizations(TorchDispatchMode):
    """Records operations that synchronize with the device, and counts copies to it.

    Such an operation reads a value of the device, or copies to it without ``non_blocking``, as
    also a constructor does that is called with a number and the device.
    """

    def __init__(self):
        super().__init__()
        self.found, self.copies = [], 0
        self._constructors = _Constructors(self.found)

    def __enter__(self):
        self._constructors.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._constructors.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out, name = func(*args, **(kwargs or {})), str(func)
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        on_meta = [a for a in tensors if a.device == META]
        if on_meta and any(
            word in name for word in ("local_scalar", "nonzero", "unique", "equal")
        ):
            self.found.append(name)
        if isinstance(out, torch.Tensor) and "copy" in name and len(tensors) > len(on_meta):
            if out.device == META:
                self.copies += 1
                if not (kwargs or {}).get("non_blocking"):
                    self.found.append(f"{name} of {[tuple(a.shape) for a in tensors]}")
        return out


class _Constructors(TorchFunctionMode):
    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], torch.Tensor):
            if torch.device(kwargs.get("device") or "cpu") == META:
                self.found.append(f"{func.__name__}({args[0]!r}) on the device")
        return func(*args, **kwargs)


class MetaOptimizer(torch.optim.Optimizer):
    """Replaces the fused optimizer, which does not support the meta device."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1})

    def step(self, closure=None):
        assert self.found_inf.device == META
