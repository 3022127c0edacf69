"""The committed tiny bundles."""

from pathlib import Path

FIXTURES = Path(__file__).parents[1] / "fixtures"
DECODER = FIXTURES / "tiny-decoder"
EMBEDDER = FIXTURES / "tiny-embedder"
CLASSIFIER = FIXTURES / "tiny-classifier"
ADAPTERS = FIXTURES / "tiny-adapter-one", FIXTURES / "tiny-adapter-two"
"""Of DECODER: one changes every layer and has its own chat template, two some layers."""
