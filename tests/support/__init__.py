"""Test doubles that keep our protocols, and tiny models made on the spot."""
