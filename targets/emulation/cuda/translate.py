"""CUDA text as TVM emits it to C++ that the host runs.

The text stays as it is, line by line, but for what C++ has no word for: `asm` statements become
calls of the engine (ptx.py), `__shared__` arrays references into the engine's shared memory, and
each kernel is followed by a table that says how to launch it. The rest is a matter of the headers
in include/.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from qcompiler.errors import EmulationError

from .ptx import asm_to_cpp
from .text import matching

KERNEL = re.compile(
    r"(?:extern\s*\"C\"\s*)?__global__\s+(?:void\s+)?(?:__launch_bounds__\((?P<bounds>[^()]*)\)\s*)?"
    r"(?:void\s+)?(?P<name>\w+)\s*(?=\()"
)
ALIGNED = r"(?:(?:__align__|alignas)\s*\(\s*(?P<align>\d+)\s*\)\s*)?"
DYNAMIC = re.compile(
    rf"extern\s+__shared__\s+{ALIGNED}(?P<type>[\w:\s]+?)\s*(?P<name>\w+)\s*\[\s*\]\s*;"
)
STATIC = re.compile(
    rf"__shared__\s+{ALIGNED}(?P<type>[\w:\s]+?)\s*(?P<name>\w+)\s*(?P<dims>(?:\[[^\]]*\])*)\s*;"
)
GAP_BYTES = 16
"""Between shared arrays: what runs past one of them by a vector meets no other."""


@dataclass(frozen=True)
class Shared:
    """One static `__shared__` array; `member` is its name in the kernel's struct."""

    name: str
    member: str
    declaration: str


def translate(source: str) -> str:
    """The C++ text of a CUDA program.

    Raises EmulationError naming what the emulator does not know.
    """
    code = asm_to_cpp(source)
    done, tables, position = [], [], 0
    for found in KERNEL.finditer(code):
        body = _body(code, found.end())
        if body is None:
            continue
        start, end = body
        name, shared = found["name"], _static_arrays(code[start:end])
        done += [code[position : found.start()], _struct(name, shared), code[found.start() : start]]
        done += ["QCEMU_KERNEL_BEGINS", _with_shared(code[start:end], name, shared)]
        tables.append(_table(name, shared, found["bounds"]))
        position = end
    text = "".join(done) + code[position:]
    if "__shared__" in text:
        raise EmulationError("the emulator knows shared memory that is declared in a kernel only")
    return "\n".join(['#line 1 "kernel.cu"', text, *tables, ""])


def _body(code: str, parameters: int) -> tuple[int, int] | None:
    """Where a kernel's body begins and ends, after and before its braces; None: only declared."""
    end = matching(code, parameters) + 1
    opening = re.compile(r"\s*\{").match(code, end)
    return (opening.end(), matching(code, opening.end() - 1)) if opening else None


def _static_arrays(body: str) -> list[Shared]:
    found = [m for m in STATIC.finditer(body) if not body[: m.start()].rstrip().endswith("extern")]
    arrays = []
    for i, m in enumerate(found):
        member = f"{m['name']}_{i}"
        align = f"alignas({m['align']}) " if m["align"] else ""
        arrays.append(Shared(m["name"], member, f"{align}{m['type']} {member}{m['dims']}"))
    return arrays


def _struct(kernel: str, arrays: list[Shared]) -> str:
    """The kernel's static shared memory, on one line: the text's lines keep their numbers."""
    members = " ".join(
        f"{a.declaration}; char gap_{i}[{GAP_BYTES}];" for i, a in enumerate(arrays)
    )
    return f"struct qcemu_shared_of_{kernel} {{ {members} }}; "


def _with_shared(body: str, kernel: str, arrays: list[Shared]) -> str:
    body = DYNAMIC.sub(r"\g<type>* const \g<name> = (\g<type>*)qcemu::dynamic_shared();", body)
    place = f"((qcemu_shared_of_{kernel}*)qcemu::static_shared())"
    members = iter(arrays)

    def reference(found: re.Match[str]) -> str:
        array = next(members)
        return f"auto& {array.name} = {place}->{array.member};" + "\n" * found[0].count("\n")

    return STATIC.sub(reference, body)


def _table(kernel: str, arrays: list[Shared], bounds: str | None) -> str:
    struct = f"qcemu_shared_of_{kernel}"
    sizes = [f"(unsigned)sizeof({struct}::{a.member})" for a in arrays]
    rows = ", ".join(
        f'{{"{a.name}", (unsigned)offsetof({struct}, {a.member}), {size}}}'
        for a, size in zip(arrays, sizes, strict=True)
    )
    threads = bounds.split(",")[0] if bounds else "qcemu::MAX_THREADS"
    return (
        f"static const qcemu::SharedArray qcemu_arrays_of_{kernel}[] = {{{rows or '{}'}}};\n"
        f"QCEMU_UNCHECKED static void qcemu_entry_of_{kernel}(void** a) "
        f"{{ qcemu_call({kernel}, a); }}\n"
        f'extern "C" QCEMU_EXPORTED const qcemu::Kernel qcemu_kernel_{kernel} = {{"{kernel}", '
        f"qcemu_entry_of_{kernel}, qcemu_arrays_of_{kernel}, {len(arrays)}, "
        f"{' + '.join(['0u', *sizes])}, {threads}, QCEMU_CHECKED}};"
    )
