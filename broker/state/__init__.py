"""What is remembered of each object between alerts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from broker.records import Alert, ObjectState, SourceMetadata, Spectrum


class Store(Protocol):
    """Remembers light curves, spectra and metadata by survey and object."""

    def remember(self, alerts: Sequence[Alert]) -> list[ObjectState]:
        """Merge each alert into its object and return, alert for alert, the object's state after the merge.

        Idempotent and independent of order: merging an alert twice, or two alerts in either order, leaves
        the same stored state. One round trip reads the batch, one writes it.
        Raises DependencyUnavailableError when the store is away.
        """

    def put_spectra(self, survey: str, spectra: Mapping[str, Spectrum]) -> None:
        """Store one spectrum for each object id, replacing an earlier one."""

    def put_metadata(self, survey: str, metadata: Mapping[str, SourceMetadata]) -> None:
        """Store catalogue values for each object id, replacing earlier ones."""

    def ready(self) -> bool:
        """Whether the store answers now."""

    def close(self) -> None:
        """Close the connections."""
