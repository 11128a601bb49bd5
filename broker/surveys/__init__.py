"""One module a survey: bytes to Alert."""

from __future__ import annotations

from typing import Final

from broker.avro.machine import warm_up
from broker.surveys.decoder import Decoder
from broker.surveys.survey import MODULES, Survey, load_surveys

__all__ = ["MODULES", "SURVEYS", "Decoder", "Survey", "load_surveys", "warm_up"]

SURVEYS: Final = tuple(survey.name for survey in load_surveys())
"""Names of the surveys whose packets are decoded where the settings name no others."""
