"""Axes as expressions, and the equations between them."""
