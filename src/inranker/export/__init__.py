"""ONNX graphs, quantisation, and the gate that refuses a bad one."""
