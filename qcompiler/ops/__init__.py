"""The operations, one class each, one file a family."""
