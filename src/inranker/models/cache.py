"""Where downloaded and derived model files are kept, and a clear word when they do not fit there."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from inranker.errors import ModelError


def cache_folder() -> Path:
    """`$INRANKER_CACHE`, else `inranker` in the user's cache folder (`$XDG_CACHE_HOME`, else `~/.cache`)."""
    if own := os.environ.get("INRANKER_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "inranker"


@contextlib.contextmanager
def room_for(folder: Path, size: int) -> Iterator[None]:
    """Check that `size` bytes fit beside `folder`, and name the place when writing fails for want of room or rights.

    Raises:
        ModelError: there is not enough room, or the folder cannot be written.
    """
    advice = f"free some, or set INRANKER_CACHE to a folder with room (now {cache_folder()})"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder.parent).free
        if free < size:
            raise ModelError(
                f"{folder.parent}: {size / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} MB are free; {advice}"
            )
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ModelError(f"{folder.parent}: the disk is full; {advice}") from None
        if error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR):
            place = error.filename or folder.parent
            raise ModelError(f"{place}: cannot be written; set INRANKER_CACHE to a folder that can") from None
        raise
