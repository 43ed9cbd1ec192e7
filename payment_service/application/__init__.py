"""The use cases, a file each, named after their RPC. They see the domain and its ports, no more."""
