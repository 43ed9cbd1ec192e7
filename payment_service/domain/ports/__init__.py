"""What the use cases need from outside, as protocols, and the values that cross them."""
