"""What can be wrong with an artifact."""

from __future__ import annotations


class ArtifactError(ValueError):
    """A file is no artifact, is damaged, or is of a version this qcompiler does not read."""


class MachineError(ArtifactError):
    """The program needs a machine other than this one."""
