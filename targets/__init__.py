"""The machines qcompiler builds for, one file each."""

if __name__ != "qcompiler.targets":
    raise ImportError("import qcompiler.targets, not targets: a second copy breaks isinstance")
