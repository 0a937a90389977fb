"""Run untrusted Python in rootless, verified Podman sandboxes."""

__version__ = "0.1.0"
