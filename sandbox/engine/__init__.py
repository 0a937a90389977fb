"""The one door to Podman: what the runner needs from a container engine, and how Podman provides it.

Only `podman` imports podman-py. Imports the basic modules (`errors`, `models` and their like) and `kernel`.
Read `protocol`, then `podman`.
"""
