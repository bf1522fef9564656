"""Write a smaller torch model."""
