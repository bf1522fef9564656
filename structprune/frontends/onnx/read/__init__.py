"""Read ONNX nodes as operators of the neutral graph."""
