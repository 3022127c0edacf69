"""Real models as checkpoint folders or ONNX files, made from Python packages; none of them is committed."""
