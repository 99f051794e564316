"""Who samples which seeds, where several processes share a folder: locks that the system takes back from the dead.

One hidden file is locked byte by byte: the first by everybody at work, the second by whoever reads and writes the
record or leaves, and one for each seed by whoever samples it. The last to leave removes the file. Where there are no
such locks (Windows, some network file systems) everybody may do everything: images are then sampled twice, and come out
the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from sde_onnx.errors import OutputError

try:
    import fcntl
except ImportError:   # Windows
    fcntl = None   # type: ignore[assignment]

__all__ = ["Claims"]

AT_WORK, RECORD, FIRST_SEED = 0, 1, 2   # bytes
SEEDS = 2**62                           # further ones share their bytes


class Claims:
    """The claims of this process in a folder, from :meth:`at_work` on.

    Args:
        path: the file that is locked; its folder is there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    @contextmanager
    def at_work(self, last: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Lets others know, for as long as the block runs, that somebody is at work here.

        Args:
            last: is called by the last process to leave, before it removes the file that is locked; by nobody where
                there are no locks.

        Raises:
            OutputError: the file that is locked is another user's, and not for this one.
        """
        if fcntl is not None:
            self._join()
        try:
            yield
        finally:
            if self._file is not None:
                try:
                    self._leave(self._file, last)
                finally:
                    self._file = None

    def _join(self) -> None:
        while True:
            try:   # no link: it might lead to a file that is not for others
                file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            except PermissionError as error:
                raise OutputError(f"{self._path} cannot be opened ({error.strerror}): is another user at work there?"
                                  ) from None
            except OSError as error:
                raise OutputError(f"{self._path} cannot be opened: {error.strerror}") from None
            if os.fstat(file).st_nlink == 1:
                with suppress(OSError):   # whose file it is lets other users lock it
                    os.fchmod(file, 0o666)
            try:
                fcntl.lockf(file, fcntl.LOCK_SH, 1, AT_WORK)
            except OSError:   # no locks here: as on Windows
                os.close(file)
                with suppress(OSError):
                    self._path.unlink()
                return
            with suppress(OSError):
                if os.path.samestat(os.fstat(file), self._path.stat()):
                    self._file = file
                    return
            os.close(file)   # the last to leave had just removed it

    def _leave(self, file: int, last: Callable[[], None]) -> None:
        """Calls ``last`` and removes the file, if nobody else is at work.

        One leaves after another: together, none would be the last.
        """
        fcntl.lockf(file, fcntl.LOCK_EX, 1, RECORD)
        try:
            if self.alone():
                try:
                    last()
                finally:
                    self._path.unlink(missing_ok=True)
        finally:
            fcntl.lockf(file, fcntl.LOCK_UN, 1, AT_WORK)   # before the record's lock goes, for whoever waits for that
            os.close(file)

    def others(self) -> bool:
        """Whether it is known that somebody else is at work here."""
        return self._file is not None and not self.alone()

    def alone(self) -> bool:
        """Whether it is known that nobody else is; then nobody begins before :meth:`record` or this block ends."""
        if self._file is None:
            return False
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, AT_WORK)
        except OSError:
            return False
        return True

    @contextmanager
    def record(self) -> Iterator[None]:
        """Keeps others from the record for as long as the block runs."""
        if self._file is not None:
            fcntl.lockf(self._file, fcntl.LOCK_EX, 1, RECORD)
        try:
            yield
        finally:
            if self._file is not None:
                fcntl.lockf(self._file, fcntl.LOCK_SH, 1, AT_WORK)   # which `alone` has made exclusive
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, RECORD)

    def claim(self, seeds: Sequence[int], *, wait: bool = False) -> bool:
        """Claims all of the seeds, or none if others have claimed one of them.

        Args:
            seeds: of a batch.
            wait: for those others to finish, or to die.
        """
        if self._file is None:
            return True
        how = fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)
        for byte in self._bytes(seeds):
            try:
                fcntl.lockf(self._file, how, 1, byte)
            except OSError:
                self.release(seeds)
                return False
        return True

    def release(self, seeds: Sequence[int]) -> None:
        """Gives claims back."""
        if self._file is not None:
            for byte in self._bytes(seeds):
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, byte)

    @staticmethod
    def _bytes(seeds: Sequence[int]) -> list[int]:
        """Of each seed, in one order for everybody: two that wait for each other would wait for ever."""
        return sorted({FIRST_SEED + seed % SEEDS for seed in seeds})
