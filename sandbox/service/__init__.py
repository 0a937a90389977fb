"""The runner behind a private Unix socket."""
