"""What passes between a sandbox and the host, and how the host reads it: frames, JSON records, one canonical form.

Nothing that comes from a sandbox is believed: each record has its exact shape, or the run ends. Imports the basic
modules (`errors`, `models` and their like) and constants of `inside`. Read `frames`, then `records`, `canonical`,
`sent`, `collector`.
"""
