"""Sends messages of lists: several at a time, so that a receiver that is slow holds up nobody else's."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from broker.log_fields import log_fields
from broker.watch import messages
from broker.watch.deliveries import Deliveries, Delivery

log = logging.getLogger(__name__)

AT_ONCE: Final = 16
"""Mails and calls at a time, in all."""
OF_ONE: Final = 2
"""Of one owner, and to one host; to the mail server as many as half of all."""
_PAUSE_S: Final = 0.5
"""Between two looks for what is due."""


class Sender:
    """Of one process."""

    def __init__(self, deliveries: Deliveries, send: Callable[[Delivery], None], stopped: threading.Event) -> None:
        """``send`` raises messages.SendError where the receiver has not taken a message."""
        self._deliveries, self._send, self._stopped = deliveries, send, stopped
        self._lock = threading.Lock()
        self._owners, self._receivers = Counter[str](), Counter[str]()
        self._freed = threading.Event()

    def run(self, worked: Callable[[], None]) -> None:
        """Until it is stopped, or the database fails; waits for what it is sending.

        ``worked`` is called as it gets on.
        """
        with ThreadPoolExecutor(AT_ONCE, "deliver") as pool:
            while not self._stopped.is_set():
                self._freed.clear()
                delivery = self._deliveries.claim(self._may) if self._owners.total() < AT_ONCE else None
                worked()
                if delivery is None:
                    self._freed.wait(_PAUSE_S)
                    continue
                with self._lock:
                    self._owners[delivery.watch["owner"]] += 1
                    self._receivers[delivery.receiver] += 1
                pool.submit(self._deliver, delivery)

    def _may(self, owner: str, receiver: str) -> bool:
        most = AT_ONCE // 2 if receiver == "mail" else OF_ONE
        with self._lock:
            return self._owners[owner] < OF_ONE and self._receivers[receiver] < most

    def _deliver(self, delivery: Delivery) -> None:
        with log_fields(delivery.log_fields()):
            try:
                self._try(delivery)
            except Exception:  # of the database: the message is tried again once nobody holds it
                log.exception("message %s", delivery.number)
            finally:
                self._deliveries.let_go(delivery)
                with self._lock:
                    self._owners[delivery.watch["owner"]] -= 1
                    self._receivers[delivery.receiver] -= 1
                self._freed.set()

    def _try(self, delivery: Delivery) -> None:
        try:
            self._send(delivery)
        except messages.SendError as error:
            self._deliveries.refused(delivery, str(error), answered=error.answered)
        except Exception:
            log.exception("message %s", delivery.number)
            self._deliveries.refused(delivery, "a fault of Trifid; see its log")
        else:
            self._deliveries.delivered(delivery)
