"""What this installation has on the machine: the services that run from it, and how all of it is taken away.

Imports everything but `cli`. Read `services`, then `removal`.
"""
