"""Writing shards: a stream of tokens becomes files that are whole or not there."""

import os
from pathlib import Path
from typing import Any, BinaryIO

from data.shards import HEADER_BYTES, TOKEN_BYTES, Ids, file_sha256, header, sync

PARTIAL = ".partial"


class ShardWriter:
    """Writes one split as a stream of tokens, rolling over to a new shard at `shard_tokens`.

    A shard gets its name when it is whole: written under a temporary name, fsynced, renamed. `checkpoint` says how much of
    the stream is on disk; a writer made from that state goes on there and drops what was written after it.
    """

    def __init__(self, folder: Path, split: str, shard_tokens: int, state: dict[str, Any] | None = None) -> None:
        self.folder, self.split, self.shard_tokens = folder, split, shard_tokens
        self.shards: dict[str, str] = dict(state["shards"]) if state else {}  # file name -> sha256 of the file
        self._file: BinaryIO | None = None
        self._open_tokens = int(state["open_tokens"]) if state else 0
        self.tokens = len(self.shards) * shard_tokens + self._open_tokens
        self._restore()

    def write(self, tokens: Ids) -> None:
        """Appends tokens to the stream."""
        done = 0
        while done < tokens.size:
            if self._file is None:
                self._file = self._partial.open("wb")
                self._file.write(header(self.shard_tokens))
            part = tokens[done : done + self.shard_tokens - self._open_tokens]
            self._file.write(part.astype("<u2", copy=False).tobytes())
            self._open_tokens += part.size
            self.tokens += part.size
            done += part.size
            if self._open_tokens == self.shard_tokens:
                self._finish(self._file)

    def checkpoint(self) -> dict[str, Any]:
        """Forces everything written onto the disk and returns the state, plain JSON, from which a writer goes on."""
        if self._file is not None:
            sync(self._file)
        return {"shards": dict(self.shards), "open_tokens": self._open_tokens}

    def close(self) -> None:
        """Finishes the last shard, whose header gets the count that it came to."""
        if self._file is not None:
            self._file.seek(0)
            self._file.write(header(self._open_tokens))
            self._finish(self._file)

    def abandon(self) -> None:
        """Closes the open file as it is, for a later writer to go on from a checkpoint."""
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def _whole(self) -> Path:
        """The name of the shard that is being written, once it is whole."""
        return self.folder / f"{self.split}_{len(self.shards):06d}.bin"

    @property
    def _partial(self) -> Path:
        return self._whole.with_name(self._whole.name + PARTIAL)

    def _finish(self, file: BinaryIO) -> None:
        sync(file)
        file.close()
        digest = file_sha256(self._partial)
        os.replace(self._partial, self._whole)
        self.shards[self._whole.name] = digest
        self._file, self._open_tokens = None, 0

    def _restore(self) -> None:
        """Brings the folder back to the state given: whole shards stay, the open one is cut, later ones go."""
        if self._whole.exists():  # it was finished after the checkpoint
            os.replace(self._whole, self._partial)
        for path in self.folder.glob(f"{self.split}_*.bin*"):
            if path.name not in self.shards and path != self._partial:
                path.unlink()
        if self._open_tokens == 0:
            self._partial.unlink(missing_ok=True)
            return
        size = HEADER_BYTES + TOKEN_BYTES * self._open_tokens
        if not self._partial.exists() or self._partial.stat().st_size < size:
            raise ValueError(
                f"{self._partial} ends before byte {size}, which was written; delete {self.folder} and start again"
            )
        self._file = self._partial.open("r+b")
        self._file.truncate(size)
        self._file.write(header(self.shard_tokens))
        self._file.seek(size)
