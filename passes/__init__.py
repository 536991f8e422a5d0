"""The passes, one file each, and the default pipeline."""

if __name__ != "qcompiler.passes":
    raise ImportError("import qcompiler.passes, not passes: a second copy of a module breaks isinstance")
