"""The one door to Podman: what we ask of a container engine, and how Podman answers.

Only `podman` imports podman-py. Imports the words and `kernel`. Read `protocol`, then `podman`.
"""
