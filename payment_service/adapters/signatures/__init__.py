"""Signs and checks what leaves the house."""
