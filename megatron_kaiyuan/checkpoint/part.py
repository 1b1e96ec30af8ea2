"""One rank's part of a checkpoint: copied to host memory, written and hashed by a thread of this process.

The thread only writes files. It calls no collective, so it can neither wait for another rank nor be waited for in
one, and it dies with the process: a rank that is killed leaves nothing running.
"""

from __future__ import annotations

import inspect
import io
import os
import threading
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import IO, Any

import torch
import xxhash
from megatron.core.dist_checkpointing.strategies.filesystem_async import WriteBucket
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint.storage import WriteResult

from megatron_kaiyuan.checkpoint.verify import Files
from megatron_kaiyuan.files import DIGEST_PREFIX

# torch's own form of an item; newer versions know a second one, and ask which.
_write_item: Any = filesystem._write_item
_FORMAT: dict[str, Any] = {}
if "serialization_format" in inspect.signature(_write_item).parameters:
    _FORMAT["serialization_format"] = filesystem.SerializationFormat.TORCH_SAVE


class HostCopies:
    """Copies of tensors in host memory that is kept from one save to the next.

    Fresh memory costs a page fault every 4 KiB, several times what the copying costs.
    """

    def __init__(self) -> None:
        self._buffers: dict[Hashable, torch.Tensor] = {}

    def room_for(self, key: Hashable, tensor: torch.Tensor) -> torch.Tensor:
        """Where a copy of a tensor goes. The next copy under the same key takes its place."""
        buffer = self._buffers.get(key)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            pinned = tensor.device.type != "cpu"
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
            self._buffers[key] = buffer
        return buffer


class BackgroundWork(threading.Thread):
    """Work of a thread whose failure is asked for later."""

    def __init__(self, action: Callable[[], None]):
        super().__init__(daemon=True, name="checkpoint")
        self._action = action
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self._action()
        except Exception as error:
            self.error = error


class Part:
    """What one rank writes.

    Args:
        buckets: megatron-core's files with their items; the tensors are in host memory and stay as they are.
        transforms: of torch's storage writer.
        extra: further files by name, each with its content.
        copies: host memory and the tensor that `write()` copies into it first.

    Attributes:
        copied: the tensors may change from here on.
        results: for megatron-core's metadata, after `write()`.
        files: sizes and checksums for the manifest, after `write()`.
    """

    def __init__(
        self,
        folder: Path,
        buckets: list[WriteBucket],
        transforms: list[Any],
        extra: dict[str, io.BytesIO],
        copies: list[tuple[torch.Tensor, torch.Tensor]],
    ):
        self._folder, self._buckets, self._transforms, self._extra = folder, buckets, transforms, extra
        self._copies = copies
        self.copied = threading.Event()
        self.results: list[WriteResult] = []
        self.files: Files = {}

    def write(self) -> None:
        """Copy the tensors, then write and flush every file.

        Raises:
            OSError: the disk is full, or the folder is gone.
        """
        try:
            for room, tensor in self._copies:
                room.copy_(tensor.detach())
        finally:
            self._copies = []
            self.copied.set()
        for name, content in self._extra.items():
            with HashingFile(self._folder / name) as file:
                file.write(content.getbuffer())
            self.files[name] = file.entry()
        for path, key, (objects, tensors) in self._buckets:
            with HashingFile(Path(path)) as file:
                for item, data in [*objects, *tensors]:
                    self.results.append(_write_item(*self._transforms, file, data, item, key, **_FORMAT))
                    file.check()
            self.files[key] = file.entry()
        # The copies belong to the next save from here on.
        self._buckets, self._extra = [], {}


class HashingFile(io.IOBase):
    """A new file that is hashed while it is written, and flushed to the disk when it is closed without an error.

    The checksum is that of the bytes that were meant to be written, not of what was read back.
    """

    def __init__(self, path: Path):
        self._file: IO[bytes] = open(path, "xb")  # noqa: SIM115 - closed by close()
        self._digest = xxhash.xxh3_128()
        self._size = 0
        self._error: OSError | None = None

    def write(self, data: Any) -> int:  # type: ignore[override]
        """torch.save turns an exception of its stream into an obscure one: it is kept for `check()`."""
        size = memoryview(data).nbytes
        if self._error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self._error = error
        self._digest.update(data)
        self._size += size
        return size

    def check(self) -> None:
        """Raise what went wrong so far."""
        if self._error is not None:
            raise self._error

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        """Nothing: the file is flushed once, at its end."""

    def entry(self) -> dict[str, Any]:
        """Size and checksum for the manifest."""
        return {"bytes": self._size, "checksum": f"{DIGEST_PREFIX}{self._digest.hexdigest()}"}

    def __enter__(self) -> HashingFile:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        with self._file as file:
            if kind is None:
                self.check()
                file.flush()
                os.fsync(file.fileno())
