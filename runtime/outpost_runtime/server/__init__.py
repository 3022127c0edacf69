"""The gRPC server: proto to request and back, nothing else."""
