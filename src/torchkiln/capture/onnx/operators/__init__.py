"""One file for each family of ONNX operators; each has a table OPERATORS of name -> function of a Call."""
