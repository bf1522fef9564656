"""Front ends: each reads a framework's model into the neutral graph and applies edits to it."""
