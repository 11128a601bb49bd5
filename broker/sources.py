"""Alert packets from files, folders and archives, one message each; for commands, demo, training.

One file that cannot be read does not end the others: what is wrong is reported with the file, the archive's member
and the reason, and reading goes on behind it.
"""

from __future__ import annotations

import os
import re
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final, Self, TypeVar, cast

from broker.avro.container import CONTAINER_MAGIC
from broker.avro.wire import CONFLUENT_MAGIC
from broker.errors import DecodeError, InputFileError
from broker.files import STANDARD_INPUT, Stream, inflated, open_stream, reason
from broker.surveys.lsst_tables import read_lsst_table
from broker.surveys.splitting import read_packet, split_container

T = TypeVar("T")

MOST_BYTES: Final = 64 << 20
"""Of packets that are held at a time; 30 MB of an archive may be hundreds of packets of as many when unpacked."""
_COMPRESSED: Final = r"(\.(gz|bz2|xz|zst))?$"
_ARCHIVE: Final = re.compile(r"\.(tgz|tbz2?|txz|tzst|tar" + _COMPRESSED + ")", re.IGNORECASE)
_PACKETS: Final = re.compile(r"\.(avro|parquet)" + _COMPRESSED, re.IGNORECASE)
_APPLE_DOUBLE: Final = "._"
"""Begins the name of a file that macOS puts beside another, with that one's attributes, into archives too."""
_PARQUET_MAGIC: Final = b"PAR1"
_TAR_MAGIC: Final = b"ustar"
_TAR_OFFSET: Final = 257
_TAR_BLOCK: Final = 512
_NAMES: Final = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_MAX_NAME_BYTES: Final = 1_000_000
"""Of one of these headers of a tar file, which tarfile reads at once, whatever their size."""
_TAR_REASONS: Final = {"unexpected end of data": "cut short: the file ends within it"}
"""What tarfile says, in our words."""
_MAX_TABLE_BYTES: Final = 2_000_000_000
"""Of a Parquet table in an archive, compressed file or pipe, which is put on the disk, since it is not read forward."""
_SHOWN: Final = 4
"""First bytes of something unknown in a message."""
_TEXT: Final = re.compile(rb"[\t\r\n -~]{8}")


@dataclass(frozen=True, slots=True)
class Packet:
    """One message."""

    name: str
    """Where it comes from: the file, and the member of an archive or the number of the record in it."""
    payload: bytes


@dataclass(frozen=True, slots=True)
class Remark:
    """What there is to say about a file that was given."""

    name: str
    """The file, and the member of an archive or the number of a row."""
    text: str
    lost: bool
    """Whether something could not be read; else there was nothing to read."""

    def __str__(self) -> str:
        return f"{self.name}: {self.text}"


_Found = Iterator[Packet | Remark]


def iter_packets(paths: Iterable[Path], report: Callable[[Remark], None] | None = None) -> Iterator[Packet]:
    """Packets of all ``paths``, in their order; a folder's files by name; ``-`` is the standard input.

    Taken are Avro files (a container of many alerts becomes as many containers of one), messages in Confluent's
    wire format, tar archives of these, as ZTF's public archive has them, and Parquet tables of LSST alerts with
    the column ``lsst_schema_version``; each plain or compressed, told by its first bytes. Of folders and archives
    only files named .avro, .parquet or, in folders, .tar, .tar.gz, .tar.xz and so on, likewise. What begins as a
    packet does is passed on as it is, for the decoder to judge.

    ``report`` gets the name of what cannot be read, and why, and the rest is read; without it, raises
    InputFileError instead.
    """
    for path in paths:
        for name, file in files_of(path):
            for found in [file] if isinstance(file, Remark) else _guarded(name, _file, file):
                if isinstance(found, Packet):
                    yield found
                elif report is not None:
                    report(found)
                elif found.lost:
                    raise InputFileError(str(found))


def in_batches(packets: Iterable[Packet], most: int) -> Iterator[list[Packet]]:
    """Lists of up to ``most`` packets, which have MOST_BYTES together but for a single larger one."""
    batch: list[Packet] = []
    size = 0
    for packet in packets:
        if batch and size + len(packet.payload) > MOST_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(packet)
        size += len(packet.payload)
        if len(batch) == most:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _guarded(name: str, read: Callable[[str, T], _Found], source: T) -> _Found:
    """What ``read`` finds; whatever one file sets off must not hold up the others."""
    try:
        yield from read(name, source)
    except tarfile.TarError as error:
        yield Remark(name, _TAR_REASONS.get(str(error), reason(error)), lost=True)
    except Exception as error:
        kind = "" if isinstance(error, InputFileError | OSError) else f"{type(error).__name__}: "
        yield Remark(name, kind + reason(error).removeprefix(f"{source}: "), lost=True)


def files_of(path: Path) -> Iterator[tuple[str, Path | Remark]]:
    """A path and its name; of a folder all packets, tables and archives in it, by name."""
    return _files(path) if path != STANDARD_INPUT and os.path.isdir(path) else iter([(str(path), path)])


def _files(root: Path) -> Iterator[tuple[str, Path | Remark]]:
    """The packets, tables and archives of a folder and of those in it, by name."""
    seen: set[tuple[int, int]] = set()
    left, found = [root], False
    while left:
        path = left.pop()
        name = str(path) if path == root else str(path.relative_to(root))
        if not os.path.isdir(path):
            found = True
            yield name, path
            continue
        try:
            status = path.stat()
            entries = sorted(os.scandir(path), key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            yield name, Remark(name, reason(error), lost=True)
            continue
        if (status.st_dev, status.st_ino) in seen:
            yield name, Remark(name, "a link to a folder that was read already: not followed", lost=True)
            continue
        seen.add((status.st_dev, status.st_ino))
        left += [path / entry.name for entry in entries if _wanted(entry.name) or os.path.isdir(entry)]
    if not found:
        yield (
            str(root),
            Remark(str(root), "no alert packets: no file in it is named .avro, .parquet or .tar", lost=True),
        )


def _wanted(name: str) -> bool:
    named = _PACKETS.search(name) or _ARCHIVE.search(name)
    return named is not None and not name.startswith(_APPLE_DOUBLE)


def _file(name: str, path: Path) -> _Found:
    with open_stream(path) as stream:
        plain = inflated(stream)
        head = plain.peek(_TAR_BLOCK)
        if head.startswith(_TAR_MAGIC, _TAR_OFFSET) or _ARCHIVE.search(path.name):
            yield from _archive(name, plain)
        elif head.startswith(_PARQUET_MAGIC) and plain is stream and path != STANDARD_INPUT:
            yield from _numbered(name, enumerate(read_lsst_table(path)))
        else:
            yield from _packets(name, plain)


def _archive(name: str, stream: Stream) -> _Found:
    head = stream.peek(_TAR_BLOCK)
    try:
        archive = tarfile.open(fileobj=cast(BinaryIO, stream), mode="r|", tarinfo=_Header)  # noqa: SIM115
    except tarfile.ReadError as error:
        if head.startswith(_TAR_MAGIC, _TAR_OFFSET):
            raise
        raise InputFileError(f"no tar archive: {_described(head)}") from error
    with archive:
        yield from _members(name, archive)


def _members(name: str, archive: tarfile.TarFile) -> _Found:
    members = taken = 0
    problem = ""
    while True:
        try:
            member = archive.next()
        except Exception as error:
            if problem in (reason(error), _TAR_REASONS.get(str(error))):  # said with the member that was cut
                return
            raise
        if member is None:
            break
        problem = ""
        cast(Any, archive).members.clear()  # tarfile would keep them all
        base = member.name.rpartition("/")[2]
        if member.isdir() or base.startswith(_APPLE_DOUBLE):
            continue
        members += 1
        if not _wanted(base):
            continue
        taken += 1
        for found in _guarded(f"{name}/{member.name}", partial(_member, archive), member):
            if isinstance(found, Remark):
                problem = found.text
            yield found
    if not members:
        yield Remark(name, "no alert packets: the archive is empty", lost=False)
    elif not taken:
        yield Remark(name, f"no alert packets: none of its {members} files is named .avro or .parquet", lost=True)


def _member(archive: tarfile.TarFile, name: str, member: tarfile.TarInfo) -> _Found:
    if _ARCHIVE.search(name):
        raise InputFileError("an archive in an archive: unpack it first")
    file = archive.extractfile(member) if member.isreg() else None
    if file is None:
        raise InputFileError("a link or device in an archive, not a file")
    yield from _packets(name, inflated(Stream(cast(BinaryIO, file))))


def _packets(name: str, stream: Stream) -> _Found:
    head = stream.peek(_TAR_BLOCK)
    if not head:
        raise InputFileError("it is empty")
    if head.startswith(_PARQUET_MAGIC):
        with tempfile.TemporaryFile() as file:
            size = 0
            while data := stream.read():
                size += file.write(data)
                if size > _MAX_TABLE_BYTES:
                    raise InputFileError(f"a table of more than {_MAX_TABLE_BYTES} bytes: unpack it first")
            yield from _numbered(name, enumerate(read_lsst_table(cast(BinaryIO, file))))
    elif head.startswith(CONTAINER_MAGIC):
        yield from _numbered(name, split_container(stream))
    elif head.startswith(bytes([CONFLUENT_MAGIC])):
        yield Packet(name, read_packet(stream))
    else:
        raise InputFileError(f"neither an Avro container nor Confluent's wire format: {_described(head)}")


def _numbered(name: str, messages: Iterable[tuple[int | None, bytes | DecodeError]]) -> _Found:
    for number, message in messages:
        place = name if number is None else f"{name}[{number}]"
        yield Remark(place, str(message), lost=True) if isinstance(message, DecodeError) else Packet(place, message)


def _described(head: bytes) -> str:
    """What a file is that begins so, where that helps."""
    if not head:
        return "it is empty"
    if head.lstrip().startswith(b"<"):
        return "it is HTML or XML, as a server's error or log-in page is"
    if head.startswith(b"PK"):
        return "it is a zip file: unpack it first"
    if _TEXT.match(head):
        return f"it begins with {head[:_SHOWN]!r}, as a text does; a table of light curves is for --lightcurves"
    return f"it begins with {head[:_SHOWN]!r}"


class _Header(tarfile.TarInfo):
    """Headers of a tar file, checked: tarfile takes a damaged or missing one for the end, and names of any size."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        """The next header; raises ReadError where the archive is damaged or ends without its end mark."""
        try:
            found = super().fromtarfile(archive)
        except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError("cut short: the archive ends without its end mark") from error
        except tarfile.InvalidHeaderError as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"damaged: {error}") from error
        if found.size < 0:
            raise tarfile.ReadError("damaged: a size below zero")
        return found

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:  # called by fromtarfile, for a subclass
        if self.type in _NAMES and self.size > _MAX_NAME_BYTES:
            raise tarfile.ReadError(f"damaged: a name or attribute of {self.size} bytes")
        found: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]
        return found
