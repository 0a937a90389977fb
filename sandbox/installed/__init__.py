"""What this installation has on the machine: the services that run from it, and how all of it is removed.

Imports everything but `cli`. Read `services`, then `removal`.
"""
