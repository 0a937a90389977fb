# /// script
# dependencies = ["numba"]
#
# [tool.will-it-run]
# does = "compiles a loop, in parallel"
# expects = 333283335000
# ///
import numpy as np
from numba import njit, prange


@njit(parallel=True)
def sum_of_squares(numbers):
    total = 0
    for i in prange(len(numbers)):
        total += numbers[i] ** 2
    return total


result = sum_of_squares(np.arange(10_000))
