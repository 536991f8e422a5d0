"""Matrix product and convolution on a GPU by one template: implicit GEMM, NHWC, any Dot.

A block computes `rows` output pixels x `columns` channels. It walks down the reduction (kernel
rows, kernel columns, pieces of the input channels) in steps of `words` words of 32 bits; the tiles
of some steps lie in shared memory at once and are copied there by cp.async while earlier ones are
multiplied. Packed weights [1, panels, KH, KW, ceil(CI / depth), columns, depth] hold each tile of
weights in one piece. What lies outside the image is the code `pad`; sizes need not fit the tiles.

An instruction of one row (dp4a, FMA) takes words that a thread reads from shared memory; one of
several rows (mma) takes matrices that a warp loads by ldmatrix. Everything else is shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from qcompiler.ops import Packing

from .algebra import bind
from .build import (
    Buffer,
    Epilogue,
    Expr,
    Operand,
    Point,
    View,
    declare,
    function,
    keep,
    local,
    store,
    unravel,
)
from .cuda import Fragment
from .direct import as_conv
from .dot import Dot
from .geometry import Conv, Linear, as_linear, split_lead
from .grid import WARP, Grid, counted, guarded

# Bytes that one cp.async copies at most, and words.
COPY_WORDS = 4
# Tiles in shared memory at once: one that is multiplied, two that are on their way.
STAGES = 3
# Words of a row of a tile; the shorter one where there are few channels.
DEEP, SHALLOW = 16, 8
# Words between the rows of a tile: 16 bytes more, so that the 8 rows that ldmatrix reads together
# (20 or 12 words apart) lie in different banks.
GAP = COPY_WORDS
# Threads across a block whose threads compute by themselves.
ACROSS = 16
# Output pixels from which large tiles still fill the 108 multiprocessors of an A100.
MANY_PIXELS = 4096
FLIP = 0x80808080
"""Codes of 0..255 moved by -128, four at a time."""
ONES = 0x01010101


@dataclass(frozen=True)
class Cut:
    """The tile of a block, `rows` x `columns` outputs and `words` deep; its warps."""

    rows: int
    columns: int
    words: int
    down: int
    across: int

    @property
    def threads(self) -> int:
        return self.down * self.across * WARP

    @property
    def pitch(self) -> int:
        """Words from one row of a tile to the next."""
        return self.words + GAP

    @property
    def stage(self) -> int:
        """Words of both tiles of one step."""
        return (self.rows + self.columns) * self.pitch

    @property
    def shared(self) -> int:
        """Bytes of shared memory."""
        return STAGES * self.stage * 4


def cut(g: Conv | Linear, dot: Dot, grid: Grid) -> Cut:
    """How a product is cut up: by its channels, and its pixels where they are known."""
    pixels, channels, depth = known_pixels(g), as_conv(g).out_channels, as_conv(g).channels
    words = SHALLOW if depth * dot.width <= SHALLOW * 4 else DEEP
    columns = next((c for c in (16, 32) if channels <= c), 64)
    if pixels is not None and pixels <= 16:
        return Cut(16, columns, words, 1, columns // 16)
    large = Cut(128, 128, words, 2, 4)
    if (pixels or 0) >= MANY_PIXELS and channels >= 128 and large.shared <= grid.shared:
        return large
    return Cut(64, columns, words, *((4, 1) if columns == 16 else (2, 2)))


def known_pixels(g: Conv | Linear) -> int | None:
    """Output pixels; None when they are known only at run time."""
    if isinstance(g, Linear):
        images, pixels = split_lead(g.lead)
    else:
        images, pixels = g.batch, g.out_height * g.out_width
    return images * pixels if isinstance(images, int) else None


def tiled_packing(g: Conv | Linear, dot: Dot, grid: Grid) -> Packing:
    size = cut(g, dot, grid)
    return Packing(size.columns, size.words * elements(dot))


def elements(dot: Dot) -> int:
    """Elements of a word."""
    return 4 // dot.width


def tiled_product(
    g: Conv | Linear, dot: Dot, *, in_dtype: str, out_dtype: str, grid: Grid,
    epilogue: Epilogue = keep, operands: Sequence[Operand] = (), init: bool = True, pad: int = 0,
    shift: int = 0, name: str = "product",
) -> Any:  # fmt: skip
    """PrimFunc (x, weights, [init], *operands, out): as matmul.conv2d; groups are not for this.

    shift: one of `dot.moves`.
    """
    if isinstance(g, Conv) and g.pointwise:
        g = as_linear(g)
    size, conv = cut(g, dot, grid), as_conv(g)
    made: list[Any] = []
    with function(name, made, grid) as params:
        weight = (conv.out_channels, conv.channels, *conv.kernel)
        io = Operand("x", g.in_shape, in_dtype), Operand("out", g.out_shape, out_dtype)
        packed = Operand("weights", tiled_packing(g, dot, grid).shape(weight), dot.b_dtype)
        x, weights, start, views, out = declare(params, io, packed, dot.acc_dtype, init, operands)
        pixels = counted(params.symbols.product(g.out_shape[:-1]))
        lead = [params.symbols.dim(d) for d in g.out_shape[:-1]]
        blocks = (pixels + (size.rows - 1)) // size.rows
        panels = -(-conv.out_channels // size.columns)
        across, down = T.launch_thread("blockIdx.x", blocks), T.launch_thread("blockIdx.y", panels)
        with across as x_block, down as panel, T.launch_thread("threadIdx.x", size.threads) as t:
            source = Source(conv, dot, size, x, in_dtype, pad, shift, pixels)
            finish = Finish(out, start, epilogue, views, pixels, conv.out_channels, lead)
            place = Block(t, x_block * size.rows, panel)
            deep = -(-conv.channels // (size.words * elements(dot)))
            steps = conv.kernel[0] * conv.kernel[1] * deep
            second = Weights(size, elements(dot), steps, weights)
            Kernel(dot, size, source, second, place, finish, steps).emit()
    return made[0]


@dataclass(frozen=True)
class Block:
    """Where a thread is: its number, the first pixel of its block, the panel of channels."""

    thread: Expr
    first: Expr
    panel: Expr


@dataclass(frozen=True)
class Finish:
    """What becomes of the sums."""

    out: Buffer
    init: Buffer | None
    epilogue: Epilogue
    views: Sequence[View]
    pixels: Expr
    channels: int
    lead: Sequence[Expr]

    def emit(self, total: Expr, pixel: Expr, channel: Expr) -> None:
        with guarded(pixel < self.pixels, channel < self.channels):
            value = total if self.init is None else total + self.init[channel]
            at = Point(pixel, unravel(pixel, self.lead), channel)
            result = self.epilogue(value, at, 1, self.views)
            store(self.out, pixel * self.channels + channel, result, 1)


@dataclass(frozen=True)
class Source:
    """The rows of the first operand: the windows that output pixels see of the input."""

    g: Conv
    dot: Dot
    cut: Cut
    x: Buffer
    dtype: str
    pad: int
    shift: int
    pixels: Expr

    @property
    def width(self) -> int:
        """Words that are copied at once; 0: single elements are put together to words."""
        sizes = {"int8": ("int8", "uint8"), "float32": ("float32",)}
        if self.dtype not in sizes[self.dot.a_dtype]:
            return 0
        per = elements(self.dot)
        return next((w for w in (4, 2, 1) if self.g.channels % (w * per) == 0), 0)

    @property
    def flipped(self) -> bool:
        """Whether codes are moved after they were copied as they are."""
        return self.width > 0 and self.shift != 0

    @property
    def outside(self) -> Expr:
        """The word of what lies outside the image, as it is in shared memory."""
        if self.dot.acc_dtype == "float32":
            return T.float32(0)
        code = (self.pad + (0 if self.width else self.shift)) & 0xFF
        word = code * 0x01010101
        return tirx.const(word - (1 << 32) if word >> 31 else word, "int32")

    def slots(self) -> tuple[int, int, int]:
        """(copies of a thread, copies of a row of the tile, words of each)."""
        words = max(self.width, 1)
        across = self.cut.words // words
        return -(-self.cut.rows * across // self.cut.threads), across, words

    def places(self, block: Block) -> Sequence[Buffer]:
        """Per copy of the thread: the image's first pixel, and the window's top and left in it.

        Rows beyond the last pixel see what it sees: they are never stored.
        """
        g, (count, across, _) = self.g, self.slots()
        found = [local(count, "int32") for _ in range(3)]
        with T.unroll(0, count) as s:
            row = (block.thread + s * self.cut.threads) // across
            pixel = T.min(block.first + row, self.pixels - 1)
            image, y, x = unravel(pixel, [0, g.out_height, g.out_width])
            values = (
                image * (g.height * g.width),
                y * g.stride[0] - g.padding[0],
                x * g.stride[1] - g.padding[1],
            )
            for buffer, value in zip(found, values, strict=True):
                store(buffer, s, T.Cast("int32", value), 1)
        return found

    def load(self, tile: Buffer, to: Expr, step: Expr, places: Sequence[Buffer],
             block: Block) -> None:  # fmt: skip
        """The tile of one step, to word `to` of shared memory."""
        g, per, (count, across, words) = self.g, elements(self.dot), self.slots()
        deep = -(-g.channels // (self.cut.words * per))
        tap, piece = step // deep, step % deep
        down, right = tap // g.kernel[1] * g.dilation[0], tap % g.kernel[1] * g.dilation[1]
        with T.unroll(0, count) as s:
            index = block.thread + s * self.cut.threads
            row, word = index // across, index % across * words
            y, x = places[1][s] + down, places[2][s] + right
            channel = (piece * self.cut.words + word) * per
            inside = [y >= 0, y < g.height, x >= 0, x < g.width] if g.padded else []
            at = ((places[0][s] + y * g.width + x) * g.channels) + channel
            here = to + row * self.cut.pitch + word
            exists = [row < self.cut.rows] if self.cut.rows * across % self.cut.threads else []
            with guarded(*exists):
                if self.width:
                    self._copy(tile, here, at, [*inside, channel < g.channels])
                else:
                    self._gather(tile, here, at, inside, channel)

    def _copy(self, tile: Buffer, to: Expr, at: Expr, inside: Sequence[Expr]) -> None:
        with T.If(tirx.all(*inside)):
            with T.Then():
                copy_async(tile, to, self.x, at, self.width)
            with T.Else():
                for w in range(self.width):
                    store(tile, to + w, self.outside, 1)

    def _gather(self, tile: Buffer, to: Expr, at: Expr, inside: Sequence[Expr],
                channel: Expr) -> None:  # fmt: skip
        """A word put together from its elements, moved on the way."""
        word = local(1, self.dot.acc_dtype)
        store(word, 0, self.outside, 1)
        for e in range(elements(self.dot)):
            with guarded(*inside, channel + e < self.g.channels):
                value = self.x[at + e]
                if self.dot.acc_dtype == "int32":
                    code = (T.Cast("int32", value) + self.shift) & 0xFF
                    mask = tirx.const(~(0xFF << (8 * e)) if e < 3 else 0x00FFFFFF, "int32")
                    value = (word[0] & mask) | (code << (8 * e))
                store(word, 0, value, 1)
        store(tile, to, word[0], 1)


def copy_async(tile: Buffer, to: Expr, source: Buffer, at: Expr, words: int) -> None:
    """cp.async of 4, 8 or 16 bytes; only the last kind may leave the first-level cache alone."""
    level = "cg" if words == COPY_WORDS else "ca"
    copy = T.ptx[f"cp.async.{level}.shared.global"]
    T.evaluate(copy(tile.ptr_to([to]), source.ptr_to([at]), words * 4))


@dataclass(frozen=True)
class Kernel:
    """The code of one thread."""

    dot: Dot
    cut: Cut
    source: Source
    second: Second
    block: Block
    finish: Finish
    steps: int
    centre: Centre | None = None

    def emit(self) -> None:
        dot, size = self.dot, self.cut
        dtype = "float32" if dot.acc_dtype == "float32" else "int32"
        tiles = T.alloc_buffer((STAGES * size.stage,), dtype, scope="shared.dyn")
        # All kernels of a file must declare what is called the same in the same way.
        IRBuilder.name(f"tiles_{dtype}", tiles)
        # TVM cuts an allocation down to the elements that it sees used, and sees the first of those
        # that cp.async and ldmatrix move: so the last, which nothing reads, is used as well.
        with guarded(self.block.thread == 0):
            store(tiles, STAGES * size.stage - 1, T.Cast(dtype, 0), 1)
        places = self.source.places(self.block)
        shape = Matrices if dot.rows > 1 else Words
        part = shape(dot, size, self.block, self.source.flipped, self.centre)
        sums = part.sums()

        def load(step: Expr) -> None:
            to = step % STAGES * size.stage
            self.source.load(tiles, to, step, places, self.block)
            self.second.load(tiles, to + size.rows * size.pitch, step, self.block)

        for step in range(STAGES - 1):
            if step < self.steps:
                load(step)
            T.evaluate(T.ptx["cp.async.commit_group"]())
        with T.serial(0, self.steps) as step:
            # All but the newest copies are done, those of this step among them; and every thread
            # has multiplied the tiles that the next copies replace.
            T.evaluate(T.ptx["cp.async.wait_group"](STAGES - 2))
            T.evaluate(T.tvm_storage_sync("shared.dyn"))
            with guarded(step + (STAGES - 1) < self.steps):
                load(step + (STAGES - 1))
            T.evaluate(T.ptx["cp.async.commit_group"]())
            part.multiply(sums, tiles, step % STAGES * size.stage)
        part.each(sums, self._finish)

    def _finish(self, total: Expr, row: Expr, column: Expr) -> None:
        pixel = self.block.first + row
        self.finish.emit(total, pixel, self.block.panel * self.cut.columns + column)


class Second(Protocol):
    """The second operand: how the tile of one step gets to word `to` of shared memory."""

    def load(self, tiles: Buffer, to: Expr, step: Expr, block: Block) -> None: ...


@dataclass(frozen=True)
class Weights:
    """Packed weights: the tile of a step is one piece of memory."""

    cut: Cut
    per: int
    steps: int
    buffer: Buffer

    def load(self, tiles: Buffer, to: Expr, step: Expr, block: Block) -> None:
        size = self.cut
        across = size.words // COPY_WORDS
        copies = size.columns * across
        begin = (block.panel * self.steps + step) * (size.columns * size.words)
        with T.unroll(0, -(-copies // size.threads)) as s:
            index = block.thread + s * size.threads
            row, word = index // across, index % across * COPY_WORDS
            with guarded(*([index < copies] if copies % size.threads else [])):
                at = (begin + index * COPY_WORDS) * self.per
                copy_async(tiles, to + row * size.pitch + word, self.buffer, at, COPY_WORDS)


@dataclass(frozen=True)
class Centre:
    """Zero points of two activations, as their codes are multiplied, over `size` products.

    sum((a - za) * (b - zb)) = sum(a * b) - zb * sum(a) - za * sum(b) + size * za * zb, modulo 2^32.
    """

    za: int
    zb: int
    size: int

    def total(self, products: Expr, first: Expr, second: Expr) -> Expr:
        both = (self.size * self.za * self.zb + (1 << 31)) % (1 << 32) - (1 << 31)
        return products - self.zb * first - self.za * second + tirx.const(both, "int32")


@dataclass(frozen=True)
class Sums:
    """Accumulators of a thread: of products, and where zero points want it of each operand."""

    products: Buffer
    first: Buffer | None
    second: Buffer | None


@dataclass(frozen=True)
class Words:
    """The outputs of a thread by an instruction of one row, whose operands are words.

    flipped: the codes of the first operand are moved by -128 in registers.
    """

    dot: Dot
    cut: Cut
    block: Block
    flipped: bool
    centre: Centre | None

    @property
    def lines(self) -> int:
        """Threads down the block."""
        return self.cut.threads // ACROSS

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of a thread, `lines` and ACROSS apart."""
        return self.cut.rows // self.lines, self.cut.columns // ACROSS

    def sums(self) -> Sums:
        (rows, columns), centre, dtype = self.shape, self.centre, self.dot.acc_dtype
        return Sums(
            zeros(rows * columns, dtype),
            zeros(rows, dtype) if centre and centre.zb else None,
            zeros(columns, dtype) if centre and centre.za else None,
        )

    def multiply(self, sums: Sums, tiles: Buffer, at: Expr) -> None:
        (rows, columns), pitch, dtype = self.shape, self.cut.pitch, self.dot.acc_dtype
        a, b = local(rows, dtype), local(columns, dtype)
        down, right = self.block.thread // ACROSS, self.block.thread % ACROSS
        with T.unroll(0, self.cut.words) as k:
            with T.unroll(0, rows) as i:
                word = tiles[at + (down + i * self.lines) * pitch + k]
                flip = tirx.const(FLIP - (1 << 32), "int32")
                store(a, i, tirx.bitwise_xor(word, flip) if self.flipped else word, 1)
            begin = at + self.cut.rows * pitch
            with T.unroll(0, columns) as j:
                store(b, j, tiles[begin + (right + j * ACROSS) * pitch + k], 1)
            with T.unroll(0, rows) as i, T.unroll(0, columns) as j:
                total = self.dot.emit(sums.products[i * columns + j], [(a[i], b[j])])
                store(sums.products, i * columns + j, total, 1)
            for side, words, count in ((sums.first, a, rows), (sums.second, b, columns)):
                if side is not None:
                    with T.unroll(0, count) as i:
                        ones = bind(T.int32(ONES))
                        store(side, i, self.dot.emit(side[i], [(words[i], ones)]), 1)

    def each(self, sums: Sums, body: Any) -> None:
        """body(sum, row, column) for every output of the thread."""
        rows, columns = self.shape
        down, right = self.block.thread // ACROSS, self.block.thread % ACROSS
        with T.unroll(0, rows) as i, T.unroll(0, columns) as j:
            total = sums.products[i * columns + j]
            if self.centre is not None:
                first = 0 if sums.first is None else sums.first[i]
                second = 0 if sums.second is None else sums.second[j]
                total = self.centre.total(total, first, second)
            body(total, down + i * self.lines, right + j * ACROSS)


@dataclass(frozen=True)
class Matrices:
    """The outputs of a warp by an instruction on matrices, m16n8k32, whose operands ldmatrix loads.

    Layouts of registers and lanes: PTX ISA, "Matrix Fragments for mma.m16n8k32" and "ldmatrix".
    """

    dot: Dot
    cut: Cut
    block: Block
    flipped: bool
    centre: Centre | None

    @property
    def tiles(self) -> tuple[int, int]:
        """Matrices of 16 rows and of 8 columns in a warp."""
        size, dot = self.cut, self.dot
        return size.rows // size.down // dot.rows, size.columns // size.across // dot.lanes

    @property
    def lane(self) -> Expr:
        return self.block.thread % WARP

    @property
    def corner(self) -> tuple[Expr, Expr]:
        """The first row and column of the warp."""
        warp, (down, right) = self.block.thread // WARP, self.tiles
        across = self.cut.across
        return warp // across * (down * self.dot.rows), warp % across * (right * self.dot.lanes)

    def sums(self) -> Sums:
        (down, right), centre = self.tiles, self.centre
        return Sums(
            zeros(down * right * 4, "uint32"),
            zeros(down * 4, "uint32") if centre and centre.zb else None,
            zeros(right * 4, "uint32") if centre and centre.za else None,
        )

    def multiply(self, sums: Sums, tiles: Buffer, at: Expr) -> None:
        (down, right), pitch, lane = self.tiles, self.cut.pitch, self.lane
        top, left = self.corner
        a, b = local(down * 4, "uint32"), local(right * 2, "uint32")
        rows = at + (top + lane % 16) * pitch + lane // 16 * 4
        columns = at + (self.cut.rows + left + lane % 8 + lane // 16 * 8) * pitch
        columns = columns + lane // 8 % 2 * 4
        deep = self.dot.depth // 4
        with T.unroll(0, self.cut.words // deep) as k:
            with T.unroll(0, down) as i:
                load_matrices(a, i * 4, tiles, rows + i * (16 * pitch) + k * deep)
            if self.flipped:
                with T.unroll(0, down * 4) as i:
                    store(a, i, tirx.bitwise_xor(a[i], T.uint32(FLIP)), 1)
            with T.unroll(0, right // 2) as j:
                load_matrices(b, j * 4, tiles, columns + j * (16 * pitch) + k * deep)
            with T.unroll(0, down) as i, T.unroll(0, right) as j:
                acc = Fragment(sums.products, (i * right + j) * 4, lane)
                pair = Fragment(a, i * 4, lane), Fragment(b, j * 2, lane)
                self.dot.emit(acc, [pair])
            self._add_up(sums, a, b)

    def _add_up(self, sums: Sums, a: Buffer, b: Buffer) -> None:
        """The sums of each operand: products with a matrix of ones."""
        if sums.first is None and sums.second is None:
            return
        ones, lane = local(4, "uint32"), self.lane
        with T.unroll(0, 4) as i:
            store(ones, i, T.uint32(ONES), 1)
        every = Fragment(ones, 0, lane)
        if sums.first is not None:
            with T.unroll(0, self.tiles[0]) as i:
                pair = Fragment(a, i * 4, lane), every
                self.dot.emit(Fragment(sums.first, i * 4, lane), [pair])
        if sums.second is not None:
            with T.unroll(0, self.tiles[1]) as j:
                pair = every, Fragment(b, j * 2, lane)
                self.dot.emit(Fragment(sums.second, j * 4, lane), [pair])

    def each(self, sums: Sums, body: Any) -> None:
        """body(sum, row, column) for every output of the thread."""
        (down, right), (top, left), lane = self.tiles, self.corner, self.lane

        def number(side: Buffer | None, k: Expr) -> Expr:
            return 0 if side is None else T.Cast("int32", side[k])

        with T.unroll(0, down) as i, T.unroll(0, right) as j, T.unroll(0, 4) as e:
            row = top + i * 16 + lane // 4 + e // 2 * 8
            column = left + j * 8 + lane % 4 * 2 + e % 2
            total = number(sums.products, (i * right + j) * 4 + e)
            if self.centre is not None:
                sides = number(sums.first, i * 4 + e), number(sums.second, j * 4 + e)
                total = self.centre.total(total, *sides)
            body(total, row, column)


def load_matrices(registers: Buffer, first: Expr, tile: Buffer, at: Expr) -> None:
    """Four matrices of 8 rows x 16 bytes; this lane says where one of the rows begins."""
    load = T.ptx["ldmatrix.sync.aligned.m8n8.x4.shared.b16"]
    T.evaluate(load(*(registers[first + r] for r in range(4)), tile.ptr_to([at])))


def zeros(count: int, dtype: str) -> Buffer:
    made = local(count, dtype)
    with T.unroll(0, count) as i:
        store(made, i, T.Cast(dtype, 0) if dtype != "uint32" else T.uint32(0), 1)
    return made
