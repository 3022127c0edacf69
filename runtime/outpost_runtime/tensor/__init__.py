"""The tensor engine: every model that is not a text generator. Tensors in, tensors out."""
