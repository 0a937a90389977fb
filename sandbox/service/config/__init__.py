"""What an administrator says of the service: its sections, where the file lies, how it is read.

Imports the words, `policy` and `service.history`'s figures. Read `model`, then `load`.
"""
