"""The error that everything about emulated CUDA raises."""


class EmulationError(RuntimeError):
    """Something cannot be emulated, or a kernel did what CUDA leaves undefined."""
