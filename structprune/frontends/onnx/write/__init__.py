"""Write a smaller ONNX model."""
