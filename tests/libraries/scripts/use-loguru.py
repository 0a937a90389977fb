# /// script
# dependencies = ["loguru"]
#
# [tool.will-it-run]
# does = "logs a message and an exception to stderr and a file"
# expects = 2
# stderr = "ZeroDivisionError"
# ///
from loguru import logger

logger.add("/tmp/run.log", format="{level}|{message}", backtrace=False)
logger.info("begins")
try:
    1 / 0
except ZeroDivisionError:
    logger.exception("fails")
result = sum("|" in line.split(" ")[0] for line in open("/tmp/run.log"))
