"""The kernel templates, one per family; the instruction set is data."""
