# /// script
# dependencies = ["pydantic"]
#
# [tool.will-it-run]
# does = "checks data, and says what is wrong"
# expects = ["value", "float_parsing"]
# quick = true
# ///
from datetime import datetime

from pydantic import BaseModel, ValidationError


class Reading(BaseModel):
    sensor: str
    value: float
    when: datetime


print(Reading(sensor="roof", value="21.5", when="2026-01-01T10:00Z"))
try:
    Reading(sensor="roof", value="warm", when="2026-01-01T10:00Z")
except ValidationError as error:
    result = [error.errors()[0]["loc"][0], error.errors()[0]["type"]]
