"""The command ``outpost``."""
