"""Read an ONNX file, and trace what every value in it is."""
