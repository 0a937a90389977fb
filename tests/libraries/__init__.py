"""Well-known libraries, each with one real use: what docs/will-it-run.md shows."""
