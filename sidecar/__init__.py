"""What the processes beside the core have in common: the gateway and the console.

They are web servers that know the core by the client package alone. This package knows no more.
"""
