"""Files from anybody: nothing they name is fetched or opened, and none makes a command hang or take much memory."""

from __future__ import annotations

import gzip
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from click.testing import CliRunner

from broker.catalog.presets import PLAIN
from broker.catalog.tables import CatalogTable
from broker.cli import main
from broker.errors import InputFileError
from broker.spectra.files import read_spectra

FIELDS = "".join(
    f'<FIELD name="{name}" datatype="double"/>' for name in ("ra", "dec", "mean_vmag", "wavelength", "flux")
)


class Server:
    """A real HTTP server that notes what it is asked for."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append(self.path)
                self.send_response(200)
                self.end_headers()
                self.wfile.write(np.ones(5, ">f8").tobytes())

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/table"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def votable(data: str, *, prefix: str = "", doctype: str = "", fields: str = FIELDS) -> str:
    return (
        f"<?xml version='1.0'?>{doctype}<VOTABLE version='1.4' xmlns='http://www.ivoa.net/xml/VOTable/v1.3' "
        f"xmlns:v='http://www.ivoa.net/xml/VOTable/v1.3' xmlns:x='http://www.w3.org/1999/xlink'>{prefix}"
        f"<RESOURCE><TABLE>{fields}<DATA>{data}</DATA></TABLE></RESOURCE></VOTABLE>"
    )


def refused(path: Path, reason: str) -> None:
    """Both readers refuse the file for this reason, with its name."""
    with pytest.raises(InputFileError, match=reason) as error:
        list(CatalogTable(path, PLAIN).chunks())
    assert str(path) in str(error.value)
    with pytest.raises(InputFileError, match=reason) as error:
        list(read_spectra(path))
    assert str(path) in str(error.value)


STREAMS = {
    "binary": "<BINARY><STREAM href='{url}'/></BINARY>",
    "binary2": "<BINARY2><STREAM href='{url}'/></BINARY2>",
    "base64": "<BINARY><STREAM href='{url}' encoding='base64'/></BINARY>",
    "gzip": "<BINARY><STREAM href='{url}' encoding='gzip'/></BINARY>",
    "fits": "<FITS extnum='1'><STREAM href='{url}'/></FITS>",
    "parquet": "<PARQUET type='VOTable-remote-file'><STREAM href='{url}'/></PARQUET>",
    "namespace": "<v:BINARY><v:STREAM href='{url}'/></v:BINARY>",
    "xlink": "<BINARY><STREAM x:href='{url}'/></BINARY>",
    "with data of its own": "<BINARY><STREAM encoding='base64' href='{url}'>P/AAAAAAAAA=</STREAM></BINARY>",
    "second": "<TABLEDATA/></DATA></TABLE><TABLE>" + FIELDS + "<DATA><BINARY><STREAM href='{url}'/></BINARY>",
    "nested": "<TABLEDATA/></DATA></TABLE><RESOURCE><RESOURCE><TABLE>" + FIELDS + "<DATA><BINARY>"
    "<STREAM href='{url}'/></BINARY></DATA></TABLE></RESOURCE></RESOURCE><TABLE>" + FIELDS + "<DATA><TABLEDATA/>",
}  # fmt: skip


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "gzip"])
@pytest.mark.parametrize("stream", STREAMS.values(), ids=list(STREAMS))
def test_data_elsewhere_are_not_fetched(tmp_path: Path, server: Server, stream: str, encoding: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(np.array([10.0, 20.0, 12.0, 5000.0, 1.0], ">f8").tobytes())
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns([fits.Column("a", "D", array=[1.0])])]).writeto(
        tmp_path / "secret.fits"
    )
    path = tmp_path / "t.vot"
    read_before = secret.stat().st_atime_ns
    for url in (server.url, f"file://{secret}", f"file:{secret}", f"file:{secret}.fits", "ftp://127.0.0.1/x", ""):
        text = votable(stream.format(url=url))
        data = text.encode("utf-16" if encoding == "utf-16" else "utf-8")
        path.write_bytes(gzip.compress(data) if encoding == "gzip" else data)
        refused(path, "which is not followed|not part of the VOTable")
    assert server.requests == []
    assert secret.stat().st_atime_ns == read_before


ENTITIES = {
    "external": ("<!DOCTYPE VOTABLE [<!ENTITY e SYSTEM '{url}'>]>", "<TABLEDATA><TR><TD>&e;</TD></TR></TABLEDATA>"),
    "parameter": ("<!DOCTYPE VOTABLE [<!ENTITY % e SYSTEM '{url}'> %e;]>", "<TABLEDATA/>"),
    "billion laughs": (
        "<!DOCTYPE VOTABLE [<!ENTITY a 'ha'>"
        + "".join(f"<!ENTITY {b} '{f'&{a};' * 10}'>" for a, b in zip("abcdefghij", "bcdefghijk", strict=True)) + "]>",
        "<TABLEDATA><TR><TD>&k;</TD></TR></TABLEDATA>",
    ),
    "default href": ("<!DOCTYPE VOTABLE [<!ATTLIST STREAM href CDATA '{url}'>]>", "<BINARY><STREAM/></BINARY>"),
}  # fmt: skip


@pytest.mark.parametrize("case", ENTITIES.values(), ids=list(ENTITIES))
def test_document_types_declare_nothing(tmp_path: Path, server: Server, case: tuple[str, str]) -> None:
    doctype, data = (part.replace("{url}", server.url) for part in case)
    (tmp_path / "t.vot").write_text(votable(data, doctype=doctype))
    refused(tmp_path / "t.vot", "declares entities or attributes")
    assert server.requests == []


def test_links_and_doctypes_of_services_do_no_harm(tmp_path: Path, server: Server) -> None:
    doctype = f"<!DOCTYPE VOTABLE SYSTEM '{server.url}'><?xml-stylesheet href='{server.url}'?>"
    fields = FIELDS.replace(
        "/>", f"><VALUES href='{server.url}'/><LINK href='{server.url}' content-role='doc'/></FIELD>"
    )
    row = "<TABLEDATA><TR><TD>10</TD><TD>20</TD><TD>12.5</TD><TD>5000</TD><TD>1</TD></TR></TABLEDATA>"
    (tmp_path / "t.vot").write_text(votable(row, doctype=doctype, fields=fields))
    [chunk] = CatalogTable(tmp_path / "t.vot", PLAIN).chunks()
    assert (chunk.ra[0], chunk.values["mean_vmag"][0]) == (10.0, 12.5)
    with pytest.raises(InputFileError, match="1 pixels"):  # it is read, and too short
        list(read_spectra(tmp_path / "t.vot"))
    assert server.requests == []


ROW = "<TABLEDATA><TR/></TABLEDATA>"
BYTES = "<BINARY><STREAM encoding='base64'>AAAA</STREAM></BINARY>"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (votable(ROW).replace("<TABLE>", "<TABLE nrows='1000000000000'>"), "claims 1,000,000,000,000 rows"),
        (votable(ROW, fields=FIELDS + "<FIELD name='x' datatype='int' arraysize='9x99999999'/>"), "would take"),
        (votable(BYTES, fields="<FIELD name='ra' datatype='char' arraysize='0'/>"), "array size 0"),
        (votable(BYTES, fields=""), "without a FIELD"),
    ],
)
def test_claims_of_votables(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "t.vot").write_text(text)
    refused(tmp_path / "t.vot", reason)


def test_names_that_look_like_addresses_are_files(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (["catalog", "load", "x"], ["spectra", "show"], ["spectra", "load"]):
        result = CliRunner().invoke(main, [*command, server.url])
        assert result.exit_code == 2, result.output
    assert "URLs are not fetched" in CliRunner().invoke(main, ["spectra", "show", server.url]).stderr
    # An ECSV text of one line would be an address to astropy.
    (tmp_path / "t.ecsv").write_text(f"# %ECSV 1.0 {server.url}")
    with pytest.raises(InputFileError):
        list(read_spectra(tmp_path / "t.ecsv"))
    # Home folders and patterns are names like any others.
    table = fits.BinTableHDU.from_columns([fits.Column(n, "D", array=[1.0]) for n in ("ra", "dec", "ruwe")])
    for name in ("~root", "*.fits", "http:"):
        (tmp_path / "t.fits").unlink(missing_ok=True)
        table.writeto(tmp_path / "t.fits")
        (tmp_path / "t.fits").rename(tmp_path / name)
        [chunk] = CatalogTable(Path(name), PLAIN).chunks()
        assert chunk.values["ruwe"][0] == 1.0
    assert server.requests == []


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    refused(tmp_path / "pipe.csv", "named pipe.*, not a file")
    refused(Path("/dev/zero"), "a device, not a file")
    (tmp_path / "link.csv").symlink_to("/dev/zero")
    refused(tmp_path / "link.csv", "a device")
    result = CliRunner().invoke(main, ["spectra", "show", str(tmp_path / "pipe.csv")])
    assert (result.exit_code, "a FIFO (named pipe), not a file" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"PK\x03\x04", "a zip archive: unpack it first"), (b"BZh91AY", "bzip2: unpack it first"),
        (b"<!DOCTYPE HTML><html><body>Not found", "an HTML page"), (gzip.compress(b"a,b\n", mtime=0), "gzip twice"),
    ],
)  # fmt: skip
def test_foreign_files_are_named(tmp_path: Path, head: bytes, reason: str) -> None:
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(head))
    refused(tmp_path / "t.csv.gz", reason)


def fits_claiming(kind: str) -> bytes:
    """A small FITS file that claims to hold 10^12 numbers, or whose header has no end."""
    cards = {
        "image": ["SIMPLE  =                    T", "BITPIX  =                  -64", "NAXIS   =                    2",
                  "NAXIS1  =              1000000", "NAXIS2  =              1000000", "END"],
        "rows": ["XTENSION= 'BINTABLE'", "BITPIX  =                    8", "NAXIS   =                    2",
                 "NAXIS1  =                   24", "NAXIS2  =        1000000000000", "PCOUNT  =                    0",
                 "GCOUNT  =                    1", "TFIELDS =                    3", "TTYPE1  = 'ra      '",
                 "TFORM1  = 'D       '", "TTYPE2  = 'dec     '", "TFORM2  = 'D       '", "TTYPE3  = 'ruwe    '",
                 "TFORM3  = 'D       '", "END"],
        "endless": ["SIMPLE  =                    T", "BITPIX  =                    8"],
    }[kind]  # fmt: skip
    empty = [
        "SIMPLE  =                    T",
        "BITPIX  =                    8",
        "NAXIS   =                    0",
        "END",
    ]
    parts = [cards] if cards[0].startswith("SIMPLE") else [empty, cards]
    data = b"".join("".join(card.ljust(80) for card in part).ljust(2880).encode() for part in parts)
    return data + b" " * 2880 * (20_000 if kind == "endless" else 100)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("kind", "reason"),
    [("image", "claims (an image|8,000,000,000,000 bytes)"), ("rows", "claims 24,000,000,000,000 bytes"),
     ("endless", "without an END card")],
)  # fmt: skip
def test_claims_of_fits_files(tmp_path: Path, kind: str, reason: str, packed: bool) -> None:
    data = fits_claiming(kind)
    (tmp_path / "t.fits").write_bytes(gzip.compress(data) if packed else data)
    refused(tmp_path / "t.fits", reason)


def test_texts_of_any_size_take_little_memory(tmp_path: Path) -> None:
    """2 GB of numbers in 2 MB of gzip, and one line of as much, in a process of 1.5 GiB."""
    piece = gzip.compress(b"3800.0 1.0\n" * 6_000_000, 1)
    (tmp_path / "rows.txt.gz").write_bytes(piece * 30)
    (tmp_path / "line.csv.gz").write_bytes(gzip.compress(b"3" * 64_000_000, 1) * 30)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from broker.catalog.presets import PLAIN\n"
        "from broker.catalog.tables import CatalogTable\n"
        "from broker.errors import InputFileError\n"
        "from broker.spectra.files import read_spectra\n"
        "for path in map(Path, sys.argv[1:]):\n"
        "    for read in (lambda p: list(read_spectra(p)), lambda p: list(CatalogTable(p, PLAIN).chunks())):\n"
        "        try:\n            read(path)\n"
        "        except InputFileError as error:\n            print(error)\n"
        # ru_maxrss would be that of the process that forked this one.
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])\n"
    )
    paths = [str(tmp_path / name) for name in ("rows.txt.gz", "line.csv.gz")]
    limit = 6 << 30  # of addresses, which libraries reserve freely
    done = subprocess.run(
        [sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )  # fmt: skip
    *messages, peak = done.stdout.splitlines()
    assert len(messages) == 4
    assert "64,000,000 bytes" in messages[0]
    assert "without a table" in messages[3]
    assert int(peak) < 1_000_000  # kB
