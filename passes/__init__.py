"""The compiler's passes, imported as `structprune.passes`."""
