"""The error that everything about emulated machines raises."""


class EmulationError(RuntimeError):
    """Something cannot be emulated, or a kernel did what its machine leaves undefined."""
