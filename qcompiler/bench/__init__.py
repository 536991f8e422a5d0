"""What `qcompiler bench` measures: works, our programs and those of peers, bars, memory."""
