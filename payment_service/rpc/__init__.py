"""The gRPC edge: a servicer per proto file, one converter, one interceptor that maps errors."""
