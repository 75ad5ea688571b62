"""Who on this machine may get at a file or folder."""

from __future__ import annotations

import os
import stat

__all__ = ["open_to_others"]


def open_to_others(path: str, rights: int) -> list[str]:
    """Return a sentence where others than owner and group have one of these rights.

    Args:
        path: of a file or folder. One that is not there is open to nobody.
        rights: of `stat.S_IROTH`, `S_IWOTH` and `S_IXOTH`.
    """
    if os.name == "nt":
        return []  # its rights are not in the mode
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return []
    if stat.S_ISDIR(mode) and mode & stat.S_ISVTX:
        rights &= ~stat.S_IWOTH  # what is in it only its owner may replace
    if not mode & rights:
        return []
    return [
        f"everybody on this machine has access to {path} (mode {stat.S_IMODE(mode):o}); "
        f"chmod o= {path}"
    ]
