"""Inline assembly in CUDA text to C++: each PTX instruction becomes a call of the engine.

The instructions are those that TVM emits around 8-bit and float32 kernels; an `asm` statement with
any other is refused by name. Source of every meaning: the PTX ISA, section of the instruction.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from qcompiler.errors import EmulationError

from .text import matching, pieces

TYPES = {
    "u8": "uint8_t", "b8": "uint8_t", "s8": "int8_t", "u16": "uint16_t", "b16": "uint16_t",
    "s16": "int16_t", "u32": "uint32_t", "b32": "uint32_t", "s32": "int32_t", "f32": "float",
    "u64": "uint64_t", "b64": "uint64_t", "s64": "int64_t", "f64": "double",
}  # fmt: skip
"""C++ types of PTX's."""
COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
NUMBER = re.compile(r"-?(0[xX][0-9a-fA-F]+|\d+)U?$")
STRING = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
ASM = re.compile(r"\b(?:__asm__|asm)\b\s*(?:__volatile__|volatile)?\s*\(")


@dataclass(frozen=True)
class Statement:
    """The operands of one `asm` statement: C++ expressions by number, its own registers by name."""

    operands: tuple[str, ...]
    registers: tuple[str, ...]

    def value(self, operand: str) -> str:
        """A C++ expression for an operand: %2, a register of the statement, or a number."""
        numbered = re.fullmatch(r"%(\d+)", operand)
        if numbered and int(numbered[1]) < len(self.operands):
            return f"({self.operands[int(numbered[1])]})"
        if operand in self.registers:
            return register(operand)
        if NUMBER.fullmatch(operand):
            return operand
        raise EmulationError(f"the emulator does not know the PTX operand `{operand}`")

    def bits(self, operand: str) -> str:
        return f"qcemu_register({self.value(operand)})"

    def vector(self, operand: str) -> list[str]:
        """The parts of `{%0, %1}`; of `%0` itself one."""
        inner = operand[1:-1] if operand.startswith("{") else operand
        return [part.strip() for part in inner.split(",")]

    def array(self, name: str, operand: str) -> str:
        return f"const uint32_t {name}[] = {{{', '.join(map(self.bits, self.vector(operand)))}}};"

    def assign(self, operand: str, name: str) -> str:
        """Statements that store the array `name` in the parts of a vector operand."""
        parts = enumerate(self.vector(operand))
        return " ".join(f"qcemu_assign({self.value(p)}, {name}[{i}]);" for i, p in parts)

    def address(self, operand: str, space: str) -> str:
        """The inside of `[%0 + 16]`: a pointer, or a 32-bit address in shared memory."""
        found = re.fullmatch(r"\[\s*(%?\w+)\s*(?:\+\s*(\d+)\s*)?\]", operand)
        if not found:
            raise EmulationError(f"the emulator does not know the PTX address `{operand}`")
        base, offset = self.value(found[1]), found[2] or "0"
        if space == "shared":
            return f"(qcemu_shared({base}) + {offset})"
        return f"((unsigned char*){base} + {offset})"

    def pointer(self, operand: str, space: str) -> str:
        address = self.address(operand, space)
        return f"qcemu::shared_pointer({address})" if space == "shared" else address


def register(name: str) -> str:
    return "qcemu_ptx_" + name.replace("%", "")


# ------------------------------------------------------------------------------- instructions

Emit = Callable[[re.Match[str], list[str], Statement], str]
"""(match of the instruction's name, its operands, statement) to C++ statements.

Every name they declare begins with qcemu_, lest it hide one of the operands.
"""


def load_matrices(name: re.Match[str], args: list[str], s: Statement) -> str:
    target, address = args
    which = f"__LINE__, {name['count']}, {_bool(name['trans'])}"
    call = f"{which}, qcemu_r, {s.address(address, 'shared')}"
    return f"uint32_t qcemu_r[4]; qcemu::load_matrices({call}); {s.assign(target, 'qcemu_r')}"


def store_matrices(name: re.Match[str], args: list[str], s: Statement) -> str:
    address, source = args
    which = f"__LINE__, {name['count']}, {_bool(name['trans'])}"
    call = f"{which}, qcemu_r, {s.address(address, 'shared')}"
    return f"{s.array('qcemu_r', source)} qcemu::store_matrices({call});"


def integer_mma(name: re.Match[str], args: list[str], s: Statement) -> str:
    d, a, b, c = args
    signs = (_bool(name["a"] == "s8"), _bool(name["b"] == "s8"), _bool(name["satfinite"]))
    form = f"{{{name['depth']}, {', '.join(signs)}}}"
    return (
        f"{_sources(a, b, c, s)} int32_t qcemu_r[4]; "
        f"qcemu::mma(__LINE__, {form}, qcemu_r, qcemu_a, qcemu_b, (const int32_t*)qcemu_c); "
        f"{s.assign(d, 'qcemu_r')}"
    )


def half_mma(name: re.Match[str], args: list[str], s: Statement) -> str:
    d, a, b, c = args
    return (
        f"{_sources(a, b, c, s)} uint32_t qcemu_r[4]; "
        f"qcemu::mma_half(__LINE__, (float*)qcemu_r, qcemu_a, qcemu_b, (const float*)qcemu_c); "
        f"{s.assign(d, 'qcemu_r')}"
    )


def _sources(a: str, b: str, c: str, s: Statement) -> str:
    return f"{s.array('qcemu_a', a)} {s.array('qcemu_b', b)} {s.array('qcemu_c', c)}"


def copy_async(name: re.Match[str], args: list[str], s: Statement) -> str:
    to, source, size = args[0], args[1], s.value(args[2])
    from_size = s.value(args[3]) if len(args) > 3 else size
    addresses = f"{s.address(to, 'shared')}, {s.pointer(source, 'global')}"
    return f"qcemu::copy_async({addresses}, {size}, {from_size}, {_bool(name['level'] == 'cg')});"


def commit_copies(name: re.Match[str], args: list[str], s: Statement) -> str:
    return "qcemu::commit_copies();"


def wait_copies(name: re.Match[str], args: list[str], s: Statement) -> str:
    return f"qcemu::wait_copies({s.value(args[0])});"


def wait_all_copies(name: re.Match[str], args: list[str], s: Statement) -> str:
    return "qcemu::commit_copies(); qcemu::wait_copies(0);"


def compare(name: re.Match[str], args: list[str], s: Statement) -> str:
    kind, sign = TYPES[name["type"]], COMPARISONS[name["how"]]
    target, a, b = map(s.value, args)
    return f"{target} = ({kind}){a} {sign} ({kind}){b};"


def move(name: re.Match[str], args: list[str], s: Statement) -> str:
    return f"qcemu_assign({s.value(args[0])}, {s.bits(args[1])});"


def load(name: re.Match[str], args: list[str], s: Statement) -> str:
    kind, parts = TYPES[name["type"]], s.vector(args[0])
    pointer = s.pointer(args[1], name["space"])
    moves = " ".join(
        f"memcpy(&{s.value(part)}, qcemu_r + {i}, sizeof *qcemu_r);" for i, part in enumerate(parts)
    )
    return (
        f"{kind} qcemu_r[{len(parts)}]; const void* qcemu_p = {pointer}; "
        f"qcemu::check_access(qcemu_p, sizeof qcemu_r, false); "
        f"memcpy(qcemu_r, qcemu_p, sizeof qcemu_r); {moves}"
    )


def store(name: re.Match[str], args: list[str], s: Statement) -> str:
    kind, parts = TYPES[name["type"]], s.vector(args[1])
    pointer = s.pointer(args[0], name["space"])
    values = ", ".join(f"qcemu_as<{kind}>({s.value(p)})" for p in parts)
    return (
        f"const {kind} qcemu_r[] = {{{values}}}; void* qcemu_p = {pointer}; "
        f"qcemu::check_access(qcemu_p, sizeof qcemu_r, true); "
        f"memcpy(qcemu_p, qcemu_r, sizeof qcemu_r);"
    )


def dot_of_bytes(name: re.Match[str], args: list[str], s: Statement) -> str:
    kinds = ["signed char" if name[side] == "s32" else "unsigned char" for side in ("a", "b")]
    operands = ", ".join(map(s.bits, args[1:]))
    return f"qcemu_assign({s.value(args[0])}, qcemu_dp4a<{', '.join(kinds)}>({operands}));"


def block_barrier(name: re.Match[str], args: list[str], s: Statement) -> str:
    if args != ["0"]:
        raise EmulationError(f"the emulator knows bar.sync of barrier 0 only, not {args}")
    return "qcemu::block_barrier(__LINE__);"


def warp_barrier(name: re.Match[str], args: list[str], s: Statement) -> str:
    return f"qcemu::warp_barrier({s.value(args[0])});"


def _bool(value: object) -> str:
    return "true" if value else "false"


SHARED = r"shared(::cta)?"
MATRICES = rf"(aligned\.)?m8n8\.x(?P<count>[124])(?P<trans>\.trans)?(\.{SHARED})?\.b16"
KIND = f"(?P<type>{'|'.join(TYPES)})"
HINTS = r"(\.nc|\.L1::\w+|\.L2::\w+|\.volatile|\.weak)*"

INSTRUCTIONS: tuple[tuple[re.Pattern[str], Emit], ...] = tuple(
    (re.compile(pattern), emit)
    for pattern, emit in (
        (rf"ldmatrix\.sync\.{MATRICES}", load_matrices),
        (rf"stmatrix\.sync\.{MATRICES}", store_matrices),
        (
            r"mma\.sync\.aligned\.m16n8k(?P<depth>16|32)\.row\.col(?P<satfinite>\.satfinite)?"
            r"\.s32\.(?P<a>[su]8)\.(?P<b>[su]8)\.s32",
            integer_mma,
        ),
        (r"mma\.sync\.aligned\.m16n8k16\.row\.col\.f32\.f16\.f16\.f32", half_mma),
        (
            rf"cp\.async\.(?P<level>ca|cg)\.{SHARED}\.global(\.L2::(64|128|256)B)?",
            copy_async,
        ),
        (r"cp\.async\.commit_group", commit_copies),
        (r"cp\.async\.wait_group", wait_copies),
        (r"cp\.async\.wait_all", wait_all_copies),
        (rf"setp\.(?P<how>{'|'.join(COMPARISONS)})\.{KIND}", compare),
        (r"mov\.[busf]32", move),
        (rf"ld\.(?P<space>global|shared)(::cta)?{HINTS}(\.v[24])?\.{KIND}", load),
        (rf"st\.(?P<space>global|shared)(::cta)?{HINTS}(\.v[24])?\.{KIND}", store),
        (r"dp4a\.(?P<a>[us]32)\.(?P<b>[us]32)", dot_of_bytes),
        (r"(bar|barrier)\.sync(\.aligned)?", block_barrier),
        (r"bar\.warp\.sync", warp_barrier),
    )
)
"""Every PTX instruction the emulator knows."""


# --------------------------------------------------------------------------------- statements


def instruction_to_cpp(instruction: str, statement: Statement) -> str:
    parts = re.fullmatch(
        r"(?:@(?P<not>!?)(?P<guard>%?\w+)\s+)?(?P<name>[a-z][\w.:]*)\s*(?P<args>.*)",
        instruction,
        re.DOTALL,
    )
    if not parts:
        raise EmulationError(f"the emulator does not know the PTX text `{instruction}`")
    args = [a.strip() for a in pieces(parts["args"], ",") if a.strip()]
    for pattern, emit in INSTRUCTIONS:
        name = pattern.fullmatch(parts["name"])
        if not name:
            continue
        try:
            code = f"{{ {emit(name, args, statement)} }}"
        except (IndexError, ValueError):  # fewer or more operands than it has
            break
        guard = parts["guard"]
        return f"if ({parts['not']}{statement.value(guard)}) {code}" if guard else code
    known = f"`{parts['name']}`" + (f" with operands {args}" if args else "")
    raise EmulationError(f"the emulator does not know the PTX instruction {known}")


def statement_to_cpp(inside: str) -> str:
    """`"text" : outputs : inputs : clobbers`, the inside of one asm statement, as C++."""
    sections = pieces(inside, ":")
    text = "".join(STRING.findall(sections[0]))
    text = re.sub(r"\\[nt]", " ", text)
    text = re.sub(r"//[^\n]*|/\*.*?\*/", " ", text).replace("%%", "%")
    operands = []
    for section in sections[1:3]:
        for operand in pieces(section, ","):
            if operand.strip():
                operands.append(operand[operand.index("(") + 1 : operand.rindex(")")].strip())
    instructions, declarations, registers = [], [], []
    # A brace that begins or ends a scope stands where an instruction begins.
    for piece in text.split(";"):
        instruction = piece.strip().lstrip("{} \n")
        declared = re.fullmatch(r"\.reg\s*\.(\w+)\s+(.*)", instruction, re.DOTALL)
        if declared:
            names = [n.strip() for n in declared[2].split(",")]
            kind = "bool" if declared[1] == "pred" else TYPES.get(declared[1], "uint32_t")
            registers += names
            declarations += [f"{kind} {register(n)} = 0;" for n in names]
        elif instruction:
            instructions.append(instruction)
    statement = Statement(tuple(operands), tuple(registers))
    code = [instruction_to_cpp(i, statement) for i in instructions]
    return f"do {{ {' '.join(declarations + code)} }} while (0)"


def asm_to_cpp(source: str) -> str:
    """The text with every asm statement translated; lines keep their numbers."""
    done, position = [], 0
    for found in ASM.finditer(source):
        if found.start() < position:
            continue
        end = matching(source, found.end() - 1)
        code = statement_to_cpp(source[found.end() : end])
        lines = re.findall(r"\\?\n", source[found.start() : end])  # in a macro they go on
        done += [source[position : found.start()], code, *lines]
        position = end + 1
    return "".join(done) + source[position:]
