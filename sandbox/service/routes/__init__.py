"""What the service answers, route by route.

Imports everything of the service but `server` and `application`. Read `runs`, then `events`.
"""
