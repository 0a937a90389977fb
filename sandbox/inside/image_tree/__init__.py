"""What runs in the tree of an image that is being made, on the tree's own Python; standard library only.

Read `prepare`: it makes what the packages' installation scripts would have made, without running one.
"""
