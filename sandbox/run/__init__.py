"""One run: the request, how it is carried out, and its outcome.

Imports `cell`, `container` and what is above them. Read `request`, then `decision`, `execution`, `outcome`.
"""
