"""gRPC servers: replication for the peer (TCP, mutual TLS), control for this node's tools (unix socket)."""
