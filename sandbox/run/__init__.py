"""One run: what is asked, carried out, and what came of it.

Imports `cell`, `container` and what is above them. Read `request`, then `decision`, `execution`, `outcome`.
"""
