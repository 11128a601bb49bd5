"""The state of each object between alerts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from broker.records import Alert, KeptSearch, ObjectState, ObservedSpectrum


class Store(Protocol):
    """Keeps light curves and spectra by survey and object."""

    def update(self, alerts: Sequence[Alert]) -> list[ObjectState]:
        """Merge each alert into its object and return, alert for alert, the object's state after the merge.

        The state holds the light curves of counterparts in other surveys, the spectra and the catalogue values
        at the object's place, too. Idempotent and independent of order: merging an alert twice, or two alerts in
        either order, leaves the same stored state. One round trip reads the batch, one writes it.
        Raises DependencyUnavailableError when the store is unavailable.
        """

    def absorb(self, alerts: Sequence[Alert]) -> None:
        """Leave what ``update`` would in the state, and return nothing: what is only for a state is not read."""

    def keep_searches(self, searches: Mapping[tuple[str, str], KeptSearch]) -> None:
        """Keep the results of period searches beside their objects, by survey and object id, in place of earlier ones.

        The states of ``update`` and ``objects_of`` bring them back. Whoever uses one sees by its checksums whether it
        belongs to the light curve, so that it does not matter in which order several workers write theirs.
        """

    def put_observed(self, spectra: Sequence[ObservedSpectrum]) -> None:
        """Store spectra, each for the object that it names, else for whatever is at its place, now or later."""

    def objects_of(self, spectra: Sequence[ObservedSpectrum]) -> list[list[tuple[Alert, ObjectState]]]:
        """For each stored spectrum the objects seen so far that it is of: latest alert and present state.

        The alerts come without their light curves.
        """

    def check(self) -> None:
        """Raise DependencyUnavailableError, or ConfigurationError, that says why the store does not answer now."""

    def close(self) -> None:
        """Close the connections."""
