"""What runs in the tree of an image that is being made, on the tree's own Python.

Imports the standard library alone, and its own modules. Read `prepare` first: it makes what the packages' installation
scripts would have made, without running one.
"""
