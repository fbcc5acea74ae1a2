"""model_forms: what a MODEL string may be, in one place for help texts and errors. Imports nothing, so that ``--help`` answers at once."""

FORMS = "torchvision:NAME, timm:NAME, FILE.py:FACTORY, PACKAGE.MODULE:FACTORY, a .pt2 file, an .onnx file or a TorchScript file (.pt, .pth, .ts)"
