"""The configuration of the service: its sections, where the file is, how it is read.

Imports the basic modules (`errors`, `models` and their like), `policy` and `service.history`'s figures. Read `model`,
then `load`.
"""
