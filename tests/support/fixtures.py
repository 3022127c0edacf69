"""The committed tiny bundles."""

from pathlib import Path

FIXTURES = Path(__file__).parents[1] / "fixtures"
DECODER = FIXTURES / "tiny-decoder"
EMBEDDER = FIXTURES / "tiny-embedder"
CLASSIFIER = FIXTURES / "tiny-classifier"
