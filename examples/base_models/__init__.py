"""Real models as checkpoint folders, made from Python packages; none of them is committed."""
