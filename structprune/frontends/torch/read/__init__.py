"""Read recorded ATen operators as operators of the neutral graph."""
