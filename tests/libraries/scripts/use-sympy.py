# /// script
# dependencies = ["sympy"]
#
# [tool.will-it-run]
# does = "solves an equation and differentiates"
# expects = {"roots" = ["-2", "2"], "slope" = "2*x*cos(x**2)"}
# ///
from sympy import diff, sin, solve, symbols

x = symbols("x")
result = {"roots": [str(root) for root in solve(x**2 - 4, x)], "slope": str(diff(sin(x**2), x))}
