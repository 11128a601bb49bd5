"""ZTF's packets by a third party's module that fails: what the settings allow, and what may happen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final, cast

from broker.avro.reader import Records
from broker.errors import DecodeError
from broker.records import Alert
from broker.surveys.ztf import Ztf

RAISES: Final = 97
"""Of an alert whose number is divisible by this the module itself raises."""
BREAKS: Final = 101
"""An alert whose number is divisible by this is made into something that no stage expects."""


class Poisoned(Ztf):
    """ZTF's decoder, which fails for some alerts."""

    def to_alerts(self, records: Records) -> list[Alert | DecodeError]:
        """As of ZTF, but for those that are poison."""
        alerts = super().to_alerts(records)
        if any(isinstance(a, Alert) and a.alert_id % RAISES == 0 for a in alerts):
            raise ZeroDivisionError("a poisoned alert in the decoder")
        return [
            replace(a, light_curve=cast(Any, None)) if isinstance(a, Alert) and a.alert_id % BREAKS == 0 else a
            for a in alerts
        ]


SURVEY: Final = Poisoned()
