"""The instance process: gRPC in front of one engine."""
