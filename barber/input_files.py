"""A file that a user named: found, and known to be one that can be read to its end."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from barber.errors import UserError


def regular_file(given: str | Path, what: str, allowed: str) -> Path:
    """The resolved path of a regular file that may be read; raises UserError for anything else.

    A fifo or a device is refused, too: reading it may wait forever or never end.

    what: what the file is to the user, like "Data file". allowed: what to give instead, a clause.
    """
    reason = None
    try:
        path = Path(given).expanduser().resolve(strict=True)
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            reason = "is a folder"
        elif not stat.S_ISREG(mode):
            reason = "is not a regular file"
        elif not os.access(path, os.R_OK):
            reason = "may not be read"
    except (FileNotFoundError, NotADirectoryError):
        reason = "does not exist"
    except OSError as error:
        reason = f"cannot be reached ({error.strerror})"
    except RuntimeError:  # pathlib's own, of both
        reason = "names an unknown user" if str(given).startswith("~") else "is a loop of links"
    except ValueError:
        reason = "is no path that a file can have"
    if reason:
        raise UserError(f"{what} {shortened(str(given))!r} {reason}: {allowed}.")
    return path


def shortened(text: str, most: int = 200) -> str:
    """A text that fits into a sentence, its middle left out where it is long."""
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 2 :]}"
