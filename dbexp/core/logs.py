"""The log of a run, on a disk that may be full."""

from __future__ import annotations

import contextlib
import logging
import sys


class LogFile(logging.FileHandler):
    """A log file whose failure costs one line on the terminal.

    Python's own prints a traceback for every record that does not fit on the disk, and buries the message that matters.
    """

    _failed = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, unless the file has failed before."""
        if not self._failed:
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Give the file up where the disk is the reason; a fault in the record is shown as always."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        stream, self.stream, self._failed = self.stream, None, True
        with contextlib.suppress(OSError):  # what is left in its buffer does not fit either
            if stream is not None:
                stream.close()
        print(f"{self.baseFilename}: the log ends here ({error.strerror})", file=sys.stderr)
