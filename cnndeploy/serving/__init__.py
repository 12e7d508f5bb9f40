"""A model server that speaks the Open Inference Protocol, version 2, by REST and gRPC."""
