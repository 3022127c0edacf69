"""The Open Inference Protocol: one core, spoken to over gRPC and over HTTP.

Source: the KServe "Open Inference Protocol" (V2) specification, with Triton's extensions
(streaming, binary tensors, classification, statistics, model repository, shared memory,
sequences, model configuration) in Triton's dialect where dialects differ.
"""
