"""A local file system that counts its operations, and fails at a chosen one."""

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pdmd.files import allow_protocol


class Faults:
    """Calls ``strike(operation)`` at the n-th operation that changes a file."""

    def __init__(self):
        self.arm(None, None)

    def arm(self, at, strike):
        self.count, self.at, self.strike = 0, at, strike

    def step(self, operation):
        self.count += 1
        if self.strike is not None and self.at in (None, self.count):
            self.strike(operation)


faults = Faults()


class FaultyStream:
    def __init__(self, stream, path):
        self.stream, self.path = stream, path

    def write(self, data):
        faults.step(f"write {self.path}")
        return self.stream.write(data)

    def close(self):
        if not self.stream.closed:
            faults.step(f"close {self.path}")
        self.stream.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def __getattr__(self, name):
        return getattr(self.stream, name)


class FaultyFileSystem(LocalFileSystem):
    protocol = "faulty"

    @classmethod
    def _strip_protocol(cls, path):
        return LocalFileSystem._strip_protocol(str(path).removeprefix("faulty://"))

    def _open(self, path, mode="rb", **kwargs):
        if mode == "rb":
            return super()._open(path, mode, **kwargs)
        faults.step(f"open {path}")
        return FaultyStream(super()._open(path, mode, **kwargs), path)

    def makedirs(self, path, exist_ok=False):
        faults.step(f"makedirs {path}")
        super().makedirs(path, exist_ok=exist_ok)

    def mv(self, path1, path2, **kwargs):
        faults.step(f"mv {path1} {path2}")
        super().mv(path1, path2, **kwargs)

    def rm(self, path, recursive=False, maxdepth=None):
        for one in path if isinstance(path, list) else [path]:
            faults.step(f"rm {one}")
            super().rm(one, recursive=recursive)


fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)
allow_protocol("faulty")
