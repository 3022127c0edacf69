"""Examples that run from the repository's root: real models, and a small vertical case."""
