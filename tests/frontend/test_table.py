"""The table: every row fits its op's schema, and every name says what its handler takes."""

import inspect

import pytest

from qcompiler.frontend.table import FAMILIES, TABLE, VANISH


def fits(op) -> bool:
    try:
        inspect.signature(TABLE[op]).bind(None, *op._schema.arguments)
    except TypeError:
        return False
    return True


def test_every_row_takes_the_arguments_of_its_op():
    assert [str(op) for op in TABLE if not fits(op)] == []


def test_no_op_has_two_rows():
    assert sum(len(family.ROWS) for family in FAMILIES) == len(TABLE)
    assert not VANISH & TABLE.keys()


def test_the_table_is_read_only():
    with pytest.raises(TypeError):
        TABLE["x"] = None  # type: ignore[index]
