"""Real models as checkpoint folders or ONNX files, from Python packages; none is committed."""
