"""How a product is cut up: register tile, tasks for threads, staging; chosen by a cost function."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum, auto

from .dot import Dot
from .geometry import Conv, Linear, Matmul, as_linear, split_lead

# Cycles of one requantized and stored accumulator vector, by assembly (4x2 tile, AVX2).
EPILOGUE_CYCLES = 4.0
# Cycles of one tile beside its products: addresses of its rows, and entering the loops.
TILE_CYCLES = 6.0
ROW_CYCLES = 1.0
# Cycles of the counter and branch of the innermost loop.
LOOP_CYCLES = 0.3
# Vector loads a cycle, on every x86 core since Haswell.
LOADS_PER_CYCLE = 2.0
# What each instruction that only loads adds, however few they are: of equally many accumulators the
# squarest tiles are fastest (GEMM 128 x 3072 x 768, maddubs2: 8x1 121 GMAC/s, 3x2 130; FMA: 8x1 43,
# 4x2 49), and where weights need no such instruction, those of one row (GEMM 768^3, Zen 3: maddubs4
# 3x2 126, 1x4 141).
LOAD_CYCLES = 0.2
# Narrower panels are preferred up to this ratio of estimated cycles: they fit more channel counts.
PANEL_TOLERANCE = 1.01
# Channels rounded up to whole registers, over the same for registers of half the width: from this
# ratio on those are used, at 24 channels, not at 40 (vpdpbusd, 96 -> 24: 159 GMAC/s, narrow 200;
# 144 -> 40: 177, narrow 201, but cores that do 512 bits as fast as 256 would lose there).
IDLE = 1.25
# Bytes of the input one task should stay within: a quarter of a 1 MiB second-level cache.
TASK_BYTES = 256 << 10
# Packed weights above this are read once, by tasks that each own some channels.
RESIDENT_BYTES = 256 << 10
# Enough pieces for the threads of a small machine to share evenly.
TASKS = 16
# Multiply-adds of a task at least: waking a thread costs some microseconds, 10^5 of these each.
TASK_MACS = 1 << 18
SERIAL_MACS = 2 * TASK_MACS
# Rows of a task of a batched product at least, where matrices alone are not enough tasks: it packs
# all of b for them.
MATMUL_ROWS = 64
ENOUGH_MATRICES = 8
# Vectors of channels in a panel for one row: as many sums as hide the latency of an FMA behind the
# decoding of its operand, and whole cache lines of 4-bit codes.
ROW_VECTORS = 4
# Bytes of weights that one core reads from memory in a cycle, on the servers measured: 28 GB/s.
STREAM_BYTES = 11.0
# Rows assumed when their number is known only at run time.
TYPICAL_ROWS = 128


@dataclass(frozen=True)
class Tile:
    """Output pixels x vectors of output channels held in registers."""

    rows: int
    vectors: int

    def lines(self, dot: Dot) -> int:
        """Accumulators along the pixels."""
        return -(-self.rows // dot.rows)


class Stage(Enum):
    """Whether the input is first copied: padded, widened, or with slack for whole-word reads."""

    NONE = auto()
    TASK = auto()
    WHOLE = auto()


@dataclass(frozen=True)
class Plan:
    """Panels of `lanes` channels, `full` of them in `main` tiles and the rest in `tail` tiles.

    block: output pixels of a matrix product, or output rows of a convolution, in one task; blocks:
    how many per image, 0 when known only at run time;
    chunk: panels (groups, when there are several) in one task.
    """

    lanes: int
    full: int
    rest: int
    main: Tile | None
    tail: Tile | None
    block: int
    blocks: int
    chunk: int
    chunks: int
    parallel: bool
    stage: Stage

    @property
    def panels(self) -> int:
        return self.full + (self.rest > 0)


@dataclass(frozen=True)
class Work:
    """One image of a product: `rows` pixels (None: not known), `steps` instructions deep.

    unit: pixels that a block takes together; halo: units below which a block reads much of its
    input twice.
    """

    rows: int | None
    steps: int
    channels: int
    groups: int
    row_bytes: int
    weight_bytes: int
    macs: int
    unit: int = 1
    halo: int = 1

    @property
    def known_rows(self) -> int:
        return TYPICAL_ROWS if self.rows is None else self.rows

    @property
    def units(self) -> int:
        return self.known_rows // self.unit


def tile_cycles(work: Work, tile: Tile, dot: Dot) -> float:
    """Estimated cycles of one tile."""
    count = tile.lines(dot) * tile.vectors
    loads = tile.rows + tile.vectors
    apart = tile.rows if tile.rows == 1 and dot.folds else loads
    step = max(count * dot.cycles, loads / LOADS_PER_CYCLE, dot.latency) + apart * LOAD_CYCLES
    overhead = TILE_CYCLES + ROW_CYCLES * tile.rows
    return work.steps * (step + LOOP_CYCLES) + count * EPILOGUE_CYCLES + overhead


def _tiles(vectors: int, work: Work, dot: Dot) -> Iterator[Tile]:
    for rows in range(1, max(min(dot.tile_rows, work.known_rows), 1) + 1):
        tile = Tile(rows, vectors)
        if rows == 1 or dot.fits(tile.lines(dot), vectors):
            yield tile


def _best_tile(vectors: int, work: Work, dot: Dot) -> tuple[float, Tile | None]:
    """(cycles of one panel, tile) over all pixels of an image."""
    if not vectors:
        return 0.0, None
    tiles = _tiles(vectors, work, dot)
    costs = [(_panel_cycles(tile, work, dot), -tile.rows, tile) for tile in tiles]
    cycles, _, tile = min(costs, key=lambda c: c[:2])
    return cycles, tile


def _panel_cycles(tile: Tile, work: Work, dot: Dot) -> float:
    """Estimated cycles of one panel over all pixels of an image."""
    return -(-work.known_rows // tile.rows) * tile_cycles(work, tile, dot)


@dataclass(frozen=True)
class Panels:
    """Output channels cut into `full` panels of `lanes`, and `rest` channels; a tile for each."""

    lanes: int
    full: int
    rest: int
    main: Tile | None
    tail: Tile | None

    @property
    def tiles(self) -> list[Tile]:
        return [t for t in (self.main, self.tail) if t]


def _panels(vectors: int, work: Work, dot: Dot) -> tuple[float, Panels]:
    lanes = vectors * dot.lanes
    full, rest = divmod(work.channels, lanes)
    main_cycles, main = _best_tile(vectors if full else 0, work, dot)
    tail_cycles, tail = _best_tile(-(-rest // dot.lanes), work, dot)
    return full * main_cycles + tail_cycles, Panels(lanes, full, rest, main, tail)


def panel_plan(work: Work, dot: Dot) -> Panels:
    """The cheapest way to cut the channels; the dot's own tile where it has one."""
    if dot.tile is not None:
        return _tiled(Tile(*dot.tile), work, dot)[1]
    costs = [_panels(vectors, work, dot) for vectors in _widths(work, dot)]
    least = min(cost for cost, _ in costs)
    return next(p for cost, p in costs if cost <= least * PANEL_TOLERANCE)


def _widths(work: Work, dot: Dot) -> range:
    """How many vectors of channels a panel may have."""
    most = min(dot.panel // dot.lanes, dot.accumulators, -(-work.channels // dot.lanes))
    return range(1, most + 1)


def _tiled(tile: Tile, work: Work, dot: Dot) -> tuple[float, Panels]:
    """(estimated cycles, panels) with that tile in whole panels, or where there is none."""
    _, cut = _panels(tile.vectors, work, dot)
    asked = Tile(min(tile.rows, work.known_rows), tile.vectors)
    if cut.main is None:
        cut = replace(cut, tail=replace(asked, vectors=-(-cut.rest // dot.lanes)))
    else:
        cut = replace(cut, main=asked)
    cycles = [(cut.full, cut.main), (1, cut.tail)]
    return sum(n * _panel_cycles(t, work, dot) for n, t in cycles if t is not None), cut


def candidates(g: Conv | Linear, dot: Dot, in_dtype: str, count: int) -> list[tuple[int, int]]:
    """Tiles (rows, vectors) worth measuring for g: the one that is estimated to be best, then at
    most `count - 1` more, in the order of the estimate; none where g is not cut into tiles."""
    if (isinstance(g, Conv) and channelwise(g, dot)) or one_row(g, dot):
        return []
    dot = replace(dot, tile=None)
    work = _work(g, dot)
    cut = panel_plan(work, dot)
    best = cut.main or cut.tail
    assert best is not None
    found = {(best.rows, best.vectors): 0.0}
    for vectors in _widths(work, dot):
        for tile in _tiles(vectors, work, dot):
            found.setdefault((tile.rows, vectors), _tiled(tile, work, dot)[0])
    return sorted(found, key=lambda tile: (found[tile], tile))[:count]


def _work(g: Conv | Linear, dot: Dot) -> Work:
    whole = isinstance(g, Conv) and not g.pointwise
    return conv_work(g, dot) if whole else linear_work(as_linear(g), dot)  # type: ignore[arg-type]


def cycles(g: Conv | Linear, dot: Dot) -> float:
    """Estimated cycles of all of g on one core, by its tiles as they are estimated to be best."""
    if isinstance(g, Conv) and channelwise(g, dot):
        taps = -(-math.prod(g.kernel) // dot.depth)
        vectors = math.prod(d for d in g.out_shape if isinstance(d, int)) / dot.lanes
        return vectors * (taps * dot.cycles + EPILOGUE_CYCLES)
    if one_row(g, dot):
        return linear_work(as_linear(g), dot).weight_bytes / STREAM_BYTES
    work = _work(g, dot)
    images = g.batch if isinstance(g, Conv) and not g.pointwise else 1
    found = (_panels(vectors, work, dot)[0] for vectors in _widths(work, dot))
    return min(found) * work.groups * (images if isinstance(images, int) else 1)


def task_plan(work: Work, images: int, panels: int, tile_rows: int) -> tuple[int, int]:
    """(pixels in a block, panels in a chunk) so that tasks share caches well and are enough.

    Large weights are split by channels, so that each is read once; otherwise the rows are.
    """
    macs = images * work.macs
    if macs < SERIAL_MACS:
        return work.unit * work.units, panels
    fits = max(TASK_BYTES // max(work.row_bytes * work.unit, 1), 1)
    if work.weight_bytes > RESIDENT_BYTES and panels > 1:
        return _block(work, fits, tile_rows), max(panels // TASKS, 1)
    wanted = max(-(-min(TASKS, macs // TASK_MACS) // images), 1)
    return _block(work, min(fits, -(-work.units // wanted)), tile_rows), panels


def _block(work: Work, least: int, tile_rows: int) -> int:
    """The block of `least` units or somewhat more that repeats least work.

    Tiles at the end of a block, and the last block, overlap those before them.
    """
    least = min(max(least, -(-tile_rows // work.unit), min(work.halo, work.units)), work.units)

    def computed(block: int) -> int:
        pixels = min(block, work.units) * work.unit
        return -(-work.units // block) * -(-pixels // tile_rows)

    most = min(2 * least + tile_rows, work.units)
    return work.unit * min(range(least, most + 1), key=lambda block: (computed(block), block))


def _plan(work: Work, dot: Dot, images: int, stage: bool) -> Plan:
    cut = panel_plan(work, dot)
    panels = work.groups if work.groups > 1 else cut.full + (cut.rest > 0)
    block, chunk = task_plan(work, images, panels, max(t.rows for t in cut.tiles))
    blocks = 0 if work.rows is None else -(-work.rows // block)
    chunks = -(-panels // chunk)
    staged = (Stage.WHOLE if chunks > 1 else Stage.TASK) if stage else Stage.NONE
    return Plan(
        cut.lanes, cut.full, cut.rest, cut.main, cut.tail, block // work.unit, blocks, chunk,
        chunks, images * work.macs >= SERIAL_MACS, staged,
    )  # fmt: skip


def conv_work(g: Conv, dot: Dot) -> Work:
    """The work of a convolution that is not pointwise."""
    pixels, depth = g.out_height * g.out_width, g.kernel[0] * g.kernel[1] * g.group_in
    taps, size = g.row(dot.depth)
    return Work(
        rows=pixels,
        steps=g.kernel[0] * taps * -(-size // dot.depth),
        channels=g.group_out,
        groups=g.groups,
        row_bytes=g.stride[0] * g.width * g.channels * dot.width // g.out_width,
        weight_bytes=g.out_channels * depth * dot.weight_width,
        macs=pixels * g.out_channels * depth,
        unit=g.out_width,
        halo=g.dilation[0] * (g.kernel[0] - 1),
    )


def plan_conv(g: Conv, dot: Dot, in_dtype: str) -> Plan:
    """The plan of a convolution that is not pointwise; its blocks are output rows."""
    stage = g.padded or in_dtype != dot.a_dtype or g.group_in % dot.depth != 0
    return _plan(conv_work(g, dot), dot, g.batch if isinstance(g.batch, int) else 1, stage)


def linear_work(g: Linear, dot: Dot) -> Work:
    """The work of a matrix product."""
    images, pixels = split_lead(g.lead)
    rows = pixels if isinstance(images, int) or pixels >= dot.tile_rows else None
    return Work(
        rows=rows,
        steps=-(-g.k // dot.depth),
        channels=g.n,
        groups=1,
        row_bytes=g.k * dot.width,
        weight_bytes=g.k * g.n * dot.weight_width,
        macs=(TYPICAL_ROWS if rows is None else rows) * g.k * g.n,
    )


def plan_linear(g: Linear, dot: Dot, in_dtype: str) -> Plan:
    """The plan of a matrix product; its blocks are rows."""
    return _plan(linear_work(g, dot), dot, 1, in_dtype != dot.a_dtype or g.k % dot.depth != 0)


def plan_matmul(g: Matmul, dot: Dot) -> Plan:
    """The plan of one product of a batch. Rows are shared out only where matrices are too few."""
    work = Work(
        rows=g.m,
        steps=-(-g.k // dot.depth),
        channels=g.n,
        groups=1,
        row_bytes=g.k * dot.width,
        weight_bytes=0,
        macs=g.m * g.k * g.n,
    )
    known = math.prod(d for d in g.lead if isinstance(d, int))
    plan = _plan(work, dot, known, False)
    least = g.m if known >= ENOUGH_MATRICES else min(max(plan.block, MATMUL_ROWS), g.m)
    block = _block(work, least, max(t.rows for t in (plan.main, plan.tail) if t))
    return replace(plan, block=block, blocks=-(-g.m // block))


def one_row(g: Conv | Linear, dot: Dot) -> bool:
    """Whether the template for one row computes g, which reads each weight once."""
    return isinstance(g, Linear) and g.single and dot.rows == 1


def row_lanes(g: Linear, dot: Dot) -> int:
    """Channels of a panel of that template."""
    return dot.lanes * min(ROW_VECTORS, -(-g.n // dot.lanes))


def channelwise(g: Conv, dot: Dot) -> bool:
    """Whether the depthwise template computes g, not the product of matrices."""
    return g.depthwise and g.channels >= dot.lanes


def fitted(g: Conv | Linear, dot: Dot) -> Dot:
    """The dot, or its narrow form where the output channels of g leave much of it idle."""
    if dot.narrow is None:
        return dot
    if isinstance(g, Conv) and g.depthwise:
        return dot if channelwise(g, dot) else dot.narrow
    channels = g.group_out if isinstance(g, Conv) else g.n
    whole, narrow = (-(-channels // d.lanes) * d.lanes for d in (dot, dot.narrow))
    return dot.narrow if whole >= IDLE * narrow else dot


def packing_of(g: Conv | Linear, dot: Dot, in_dtype: str) -> tuple[int, int, int, bool]:
    """(lanes, depth, groups, taps) of the `qcompiler.ops.Packing` that the kernel for `g` reads."""
    if isinstance(g, Conv) and channelwise(g, dot):
        return g.channels, dot.depth, 1, True
    if isinstance(g, Conv) and not g.pointwise:
        return plan_conv(g, dot, in_dtype).lanes, dot.depth, g.groups, g.rowwise(dot.depth)
    if isinstance(g, Linear) and one_row(g, dot):
        return row_lanes(g, dot), dot.depth, 1, False
    return plan_linear(as_linear(g), dot, in_dtype).lanes, dot.depth, 1, False
