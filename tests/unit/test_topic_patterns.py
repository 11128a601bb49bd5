"""Regular expressions of topics, read as the C library's regcomp reads them, which is what librdkafka calls."""

from __future__ import annotations

import ctypes
import platform

import pytest

from broker.topic_names import check_topic, matches

NAMES = (
    "alerts", "alerts.ztf", "alerts-v7.4", "alerts-v7_4", "alerts-v10", "ALERTS-v7", "lsst-alerts-v7.4", "v", "v7",
    "a.b", "a-b", "a_b", "w", "d", "alerts-vw", "0", "ab", "aab", "b",
)  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "taken"),
    [
        ("^alerts-v[[:digit:]]+$", ["alerts-v10"]),
        ("^alerts-v[[:digit:].]+$", ["alerts-v7.4", "alerts-v10"]),
        ("^alerts-v[^[:alpha:].]*$", ["alerts-v7_4", "alerts-v10"]),
        ("^[[:upper:]]", ["ALERTS-v7"]),
        ("^[[:lower:]][[:punct:]][[:xdigit:]]$", ["a.b", "a-b", "a_b"]),
        ("^[]a-]-", ["a-b"]),
        ("^a[.-]b$", ["a.b", "a-b"]),
        ("^a[+-.]b$", ["a.b", "a-b"]),  # a range: + , - .
        (r"^a[\.]b$", ["a.b"]),
        (r"^a\.b$", ["a.b"]),
        ("^(v|w)$", ["v", "w"]),
        ("^a{2}b|^0$", ["0", "aab"]),
        (r"^\w$", ["v", "w", "d", "0", "b"]),
        ("^[[:space:]]", []),
        ("^[^]a-zA-Z]", ["0"]),
    ],
)
def test_which_topics_a_pattern_takes(pattern: str, taken: list[str]) -> None:
    check_topic(pattern)
    assert [name for name in NAMES if matches(pattern, name)] == taken
    if platform.libc_ver()[0] == "glibc":
        assert [name for name in NAMES if _regexec(pattern, name)] == taken


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("^a[[:digits:]]", r"no such class as \[:digits:\]; there are alnum, .*digit"),
        ("^a[[:digit]", r"no such class as"),
        ("^a[[.a.]]", r"\[\. in a bracket expression is not supported"),
        (r"^a[\d]", r"\\d'?.* in \[\.\.\.\] is a backslash or a letter"),
        (r"^a\d", r"\\d is not in the regular expressions"),
        ("^a+?$", r"\+\? is not in the regular expressions"),
        ("^(?:a)", r"\(\? is not in the regular expressions"),
        (r"^\<a", r"\\< is not in the regular expressions"),
        ("^a[bc", r"a \[ without its \]"),
        ("^a[]", r"a \[ without its \]"),
        ("^a[z-b]", "the range z-b"),
        ("^a(b", "no regular expression"),
    ],
)
def test_what_would_be_read_otherwise_is_refused(pattern: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        check_topic(pattern)


def _regexec(pattern: str, name: str) -> bool:
    """As librdkafka asks (rdregex.c): REG_EXTENDED and REG_NOSUB of the C library."""
    libc = ctypes.CDLL(None)
    compiled = ctypes.create_string_buffer(512)  # a regex_t of glibc has 64 bytes
    assert libc.regcomp(compiled, pattern.encode(), 1 | 8) == 0
    found = libc.regexec(compiled, name.encode(), 0, None, 0) == 0
    libc.regfree(compiled)
    return found
