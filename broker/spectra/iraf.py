"""Wavelengths of IRAF's spectra in the multispec format: ``help specwcs`` in IRAF's onedspec package.

The header has the world coordinates as text, cut into cards WAT1_001, WAT1_002, ... of 68 characters, with one
string for each aperture: aperture, beam, type (0 linear, 1 log-linear, 2 functions), first wavelength, step, number
of pixels, Doppler factor, limits of the aperture, and functions of the pixel.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.polynomial import chebyshev, legendre
from numpy.typing import NDArray

from broker.spectra.normalise import UnusableSpectrumError

Array = NDArray[np.float64]

_CARD: Final = 68
_MOST_CARDS: Final = 5000
_ATTRIBUTE: Final = re.compile(r"([A-Za-z]\w*)\s*=\s*(\"[^\"]*\"|\S+)")
_LINEAR, _LOG, _FUNCTIONS = 0, 1, 2
_CHEBYSHEV, _LEGENDRE, _CUBIC, _SPLINE, _PIXELS, _SAMPLES = range(1, 7)
_BEFORE_FUNCTIONS: Final = 9
_BEFORE_PARAMETERS: Final = 3


def attributes(header: Any) -> dict[str, str]:
    """What the WAT cards of the whole image and of the first axis say, by name in lower case; none without any."""
    found: dict[str, str] = {}
    for axis in (0, 1):
        cards = []
        for number in range(1, _MOST_CARDS + 1):
            card = header.get(f"WAT{axis}_{number:03d}")
            if card is None:
                break
            cards.append(str(card).ljust(_CARD))  # blanks at the end of a card are part of the text
        found |= {match[1].lower(): match[2].strip('"').strip() for match in _ATTRIBUTE.finditer("".join(cards))}
    return {name: value.lower() if name in ("system", "wtype") else value for name, value in found.items()}


def dispersion(cards: Mapping[str, str], line: int, pixels: int, header: Any) -> tuple[Array, int]:
    """Wavelengths (pixels,) of an image line, from 1, in the unit of ``cards``, and the number of its aperture.

    ``cards`` are from ``attributes``. Raises UnusableSpectrumError where the line has none, or not to the format.
    """
    text = cards.get(f"spec{line}")
    if text is None:
        raise UnusableSpectrumError(f"IRAF multispec without spec{line} in its WAT1 cards")
    try:
        numbers = [float(word) for word in text.split()]
        aperture, kind = int(numbers[0]), int(numbers[2])
        first, step, doppler = numbers[3], numbers[4], numbers[6]
        # From pixels of this image to those of the one it was cut out of.
        pixel = (np.arange(1.0, pixels + 1.0) - float(header.get("LTV1", 0.0))) / float(header.get("LTM1_1", 1.0))
        if kind == _FUNCTIONS:
            wavelength = _sum(numbers[_BEFORE_FUNCTIONS:], pixel)
        elif kind in (_LINEAR, _LOG):
            wavelength = first + step * (pixel - 1.0)
        else:
            raise UnusableSpectrumError(f"aperture {aperture} has no dispersion (type {kind})")
        if kind == _LOG or (kind == _FUNCTIONS and header.get("DC-FLAG", 0) == 1):
            wavelength = 10.0**wavelength
        return np.asarray(wavelength / (1.0 + doppler), np.float64), aperture
    except UnusableSpectrumError:
        raise
    except (ValueError, IndexError, OverflowError, ZeroDivisionError) as error:
        raise UnusableSpectrumError(f"spec{line} = {text[:80]!r} is not to IRAF's multispec format") from error


def _sum(numbers: list[float], pixel: Array) -> Array:
    """The weighted sum of functions, one after another: weight, zero point, type and its parameters."""
    total = np.zeros(len(pixel))
    if not numbers:
        raise IndexError
    while numbers:
        weight, zero, kind = numbers[0], numbers[1], int(numbers[2])
        value, used = _function(kind, numbers[_BEFORE_PARAMETERS:], pixel)
        total += weight * (zero + value)
        numbers = numbers[_BEFORE_PARAMETERS + used :]
    return total


def _function(kind: int, parameters: list[float], pixel: Array) -> tuple[Array, int]:
    """The values of one function, NaN outside its range of pixels, and how many parameters it has."""
    count = int(parameters[0])
    if not 0 < count <= len(parameters):
        raise ValueError
    if kind in (_PIXELS, _SAMPLES):
        size = count * (1 if kind == _PIXELS else 2)
        rest = np.array(parameters[1 : 1 + size])
        if len(rest) < size:
            raise IndexError
        at = np.arange(1.0, count + 1.0) if kind == _PIXELS else rest[::2]
        values = rest if kind == _PIXELS else rest[1::2]
        return np.interp(pixel, at, values, np.nan, np.nan), 1 + size
    low, high = parameters[1], parameters[2]
    size = count + {_CHEBYSHEV: 0, _LEGENDRE: 0, _CUBIC: 3, _SPLINE: 1}[kind] if kind <= _SPLINE else -1
    coefficients = np.array(parameters[3 : 3 + size])
    if size < 1 or len(coefficients) < size or high <= low:
        raise ValueError
    if kind in (_CHEBYSHEV, _LEGENDRE):
        n = (pixel - (high + low) / 2.0) / ((high - low) / 2.0)
        value = chebyshev.chebval(n, coefficients) if kind == _CHEBYSHEV else legendre.legval(n, coefficients)
    else:
        s = (pixel - low) / (high - low) * count
        piece = np.clip(np.floor(s), 0, count - 1).astype(np.intp)
        b = s - piece
        a = 1.0 - b
        basis: tuple[Array, ...] = (a, b)
        if kind == _CUBIC:
            basis = (a**3, 1.0 + 3.0 * a * (1.0 + a * b), 1.0 + 3.0 * b * (1.0 + a * b), b**3)
        value = sum(coefficients[piece + i] * x for i, x in enumerate(basis))
    return np.where((pixel >= low) & (pixel <= high), value, np.nan), 3 + size
