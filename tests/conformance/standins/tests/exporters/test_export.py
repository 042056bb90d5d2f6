class ExportTesterMixin:
    """Stand-in: not in the sdist; tests/test_modeling_surgenet.py exports to torch.export and ONNX itself."""
