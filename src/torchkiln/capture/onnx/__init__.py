"""ONNX files as models: a module that runs an ONNX graph in PyTorch, operator by operator, so that torch.export captures it."""
