"""qcompiler: PyTorch models in, fast and exact integer programs out."""
