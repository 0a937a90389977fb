# /// script
# dependencies = ["msgspec"]
#
# [tool.will-it-run]
# does = "decodes JSON into a class and encodes MessagePack"
# expects = ["roof", true]
# ///
import msgspec


class Reading(msgspec.Struct):
    sensor: str
    value: float


reading = msgspec.json.decode(b'{"sensor": "roof", "value": 21.5}', type=Reading)
packed = msgspec.msgpack.encode(reading)
result = [reading.sensor, msgspec.msgpack.decode(packed, type=Reading) == reading]
