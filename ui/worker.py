"""A stream of events on a thread of its own, so that the page can stop it at any moment."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator

from barber.events import Event


class Worker:
    """Consumes `stream` in the background.

    `batches` yields the events; `stop` returns at once, and the stream is closed (its `finally` runs) at its next
    event, on the thread that ran it.
    """

    def __init__(self, stream: Iterator[Event]) -> None:
        self._stream = stream
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="barber-worker", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            for event in self._stream:
                if self._stopped.is_set():
                    break
                self._events.put(event)
        except BaseException as error:  # `batches` raises it
            self._error = error
        finally:
            try:
                self._stream.close()
            except BaseException as error:
                self._error = self._error or error
            self._events.put(None)

    def stop(self) -> None:
        """Ask the stream to stop; does not wait for it."""
        self._stopped.set()

    def batches(self, seconds: float) -> Iterator[list[Event]]:
        """Events in lists, a list at least every `seconds` (empty if there were none), until the stream ends.

        Raises what the stream raised. Closing this iterator stops the stream.
        """
        try:
            while True:
                batch, ended = self._collect(seconds)
                yield batch
                if ended:
                    break
            if self._error is not None:
                raise self._error
        finally:
            self.stop()

    def _collect(self, seconds: float) -> tuple[list[Event], bool]:
        """The events of the next `seconds`, and whether the stream has ended."""
        batch: list[Event] = []
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            try:
                event = self._events.get(timeout=left)
            except queue.Empty:
                break
            if event is None:
                return batch, True
            batch.append(event)
        return batch, False
