# /// script
# dependencies = ["tqdm"]
#
# [tool.will-it-run]
# does = "shows the progress of a loop"
# expects = 4950
# stderr = "100/100"
# ///
from tqdm import tqdm

result = sum(number for number in tqdm(range(100)))
