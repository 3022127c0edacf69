"""The Open Inference Protocol; the modules here are generated from the .proto file beside them."""
