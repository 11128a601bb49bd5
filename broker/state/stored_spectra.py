"""Storing spectra: each in one place, whatever place it had before.

Spectra are few, and those of one batch may be anywhere. So this takes a round trip for each step, in an order in which
the same spectra, stored again after a failure in between, leave the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from broker.records import ObservedSpectrum
from broker.redis_client import CommandPipeline, RedisConnection
from broker.state.encoding import encode_spectrum
from broker.state.keys import NO_HOME, base, named_spectra_key, sky_key
from broker.state.places import StoredPlace, own_cells, own_homes


def put_spectra(connection: RedisConnection, prefix: str, spectra: Sequence[ObservedSpectrum]) -> None:
    """Store spectra by the name of their object, or else by their position.

    ``<prefix>:where:<id>`` says where a spectrum is: ``at:<home>:<cell>`` or ``of:<name>``; ``at:<cell>`` with
    no home. ``<prefix>:spectrum-of:<name>`` says which one an object's is.
    """
    if not spectra:
        return
    homes, cells = own_homes(spectra), own_cells(spectra)
    where = {
        s.spectrum_id: f"of:{s.survey}:{s.object_id}" if s.survey and s.object_id else f"at:{home}:{cell}"
        for s, home, cell in zip(spectra, homes, cells, strict=True)
    }
    last = {spectrum.spectrum_id: spectrum for spectrum in spectra}
    before = dict(zip(last, connection.get_many([f"{prefix}:where:{s}" for s in last]), strict=True))

    def put(pipeline: CommandPipeline) -> None:
        for spectrum_id, spectrum in last.items():
            kind, _, rest = where[spectrum_id].partition(":")
            value = encode_spectrum(spectrum.spectrum)
            if kind == "of":
                pipeline.command("SET", f"{prefix}:{rest}:sp", value)
                pipeline.command("SET", f"{prefix}:spectrum-of:{rest}", spectrum_id)
                pipeline.command("SET", named_spectra_key(prefix), "1")
            else:
                home, _, cell = rest.partition(":")
                pipeline.command("SET", f"{base(prefix, home)}:spectrum:{spectrum_id}", value)
                place = StoredPlace(spectrum.ra, spectrum.dec, spectrum.mjd).pack()
                pipeline.command("HSET", sky_key(prefix, home, "spectra", cell), spectrum_id, place)

    connection.execute(put, write=True)
    left = {s: was.decode() for s, was in before.items() if was is not None and was.decode() != where[s]}
    if left:
        _remove(connection, prefix, left)
    connection.commands([("SET", f"{prefix}:where:{s}", at) for s, at in where.items()], write=True)


def _remove(connection: RedisConnection, prefix: str, left: dict[str, str]) -> None:
    """Take spectra away from where they were; an object's only where it has not got another meanwhile."""
    named = {s: was[3:] for s, was in left.items() if was.startswith("of:")}
    owners = connection.get_many([f"{prefix}:spectrum-of:{name}" for name in named.values()])
    still = {s for s, owner in zip(named, owners, strict=True) if owner == s.encode()}

    def remove(pipeline: CommandPipeline) -> None:
        for spectrum_id, was in left.items():
            if spectrum_id in still:
                pipeline.command("DEL", f"{prefix}:{was[3:]}:sp")
                pipeline.command("DEL", f"{prefix}:spectrum-of:{was[3:]}")
            elif spectrum_id not in named:
                home, _, cell = was[3:].rpartition(":")
                pipeline.command("HDEL", sky_key(prefix, home or NO_HOME, "spectra", cell), spectrum_id)
                pipeline.command("DEL", f"{base(prefix, home or NO_HOME)}:spectrum:{spectrum_id}")

    connection.execute(remove, write=True)
