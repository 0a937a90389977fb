# /// script
# dependencies = ["zstandard"]
#
# [tool.will-it-run]
# does = "compresses and decompresses"
# expects = true
# ///
import zstandard

data = b"temperature=21.5\n" * 1000
packed = zstandard.compress(data)
result = len(packed) < 100 and zstandard.decompress(packed) == data
