"""Who may connect: sockets, peers, users and groups, and what each may do.

Imports `service.config`. Read `listen`, then `access`.
"""
