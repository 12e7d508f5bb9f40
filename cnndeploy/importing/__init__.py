"""Import: networks and ONNX files of others, with preprocessing and labels, written after they were tried out."""
