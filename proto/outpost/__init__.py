"""The wire of Outpost."""
