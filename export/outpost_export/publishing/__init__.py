"""From a bundle to a repository: keys, blocks, deltas, signed metadata."""
