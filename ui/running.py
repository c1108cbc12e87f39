"""A run on a thread of its own: pages follow it, and it goes on without them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator

from barber.errors import UserError
from barber.events import Event
from ui.live import Live

DEFECT = "The run failed ({}): this is a defect of Barber, and the log of the server has the details."


class Running:
    """A run that goes on by itself.

    events: its stream, which is closed on the thread of the run. live: what the pages show of it. stopped: asked at
    each event whether the run is to stop. ended: called with this run once its stream is closed.

    Attributes:
        failure: the sentence that it failed with; "" while it goes on, or if it did not fail.
        stopped: as given.
    """

    def __init__(
        self, events: Iterator[Event], live: Live, stopped: Callable[[], bool], ended: Callable[[Running], None]
    ) -> None:
        self.failure = ""
        self.stopped = stopped
        self._live = live
        self._drawn, self._blocks = 0, ""
        self._reading = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(events, ended), name="barber-run", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def over(self, seconds: float) -> bool:
        """Wait for the end, at most `seconds`; whether it has come."""
        return self._over.wait(seconds)

    def show(self) -> tuple[str, str, str, str]:
        """What the pages show now: the status, the finished sub-blocks and what it does in one line, as HTML; its
        announcement.
        """
        with self._reading:
            if (
                len(self._live.seen) != self._drawn
            ):  # a table of all sub-blocks, and every page asks several times a second
                self._drawn, self._blocks = len(self._live.seen), self._live.blocks()
            return self._live.status(), self._blocks, self._live.brief(), self._live.announcement()

    def progress(self) -> dict:
        """What the API says of it: phase, where, share_done from 0 to 1, seconds_left or None."""
        with self._reading:
            now, eta = self._live.now, self._live.eta
            return {
                "phase": now.phase,
                "where": now.where,
                "share_done": eta.fraction,
                "seconds_left": eta.seconds_left,
            }

    def result(self) -> str:
        """What the pages show of its results, as HTML."""
        with self._reading:
            return self._live.result()

    def _run(self, events: Iterator[Event], ended: Callable[[Running], None]) -> None:
        try:
            for event in events:
                if self.stopped():
                    break
                with self._reading:
                    self._live.update(event)
        except UserError as error:
            self.failure = str(error)
        except Exception as error:
            logging.getLogger(__name__).exception("A run failed")
            self.failure = DEFECT.format(type(error).__name__)
        finally:
            try:
                events.close()
            except Exception:
                logging.getLogger(__name__).exception("A run did not end properly")
            try:
                ended(self)
            finally:
                self._over.set()
