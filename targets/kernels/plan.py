"""How a product is cut up: register tile, tasks for threads, staging; chosen by a cost function."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

from .dot import Dot
from .geometry import Conv, Linear, split_lead

# Cycles of one requantized and stored accumulator vector, by assembly (4x2 tile, AVX2).
EPILOGUE_CYCLES = 4.0
# Cycles of one tile beside its products: addresses of its rows, and entering the loops.
TILE_CYCLES = 6.0
ROW_CYCLES = 1.0
# Cycles of the counter and branch of the innermost loop.
LOOP_CYCLES = 0.3
# Vector loads a cycle, on every x86 core since Haswell.
LOADS_PER_CYCLE = 2.0
MAX_VECTORS = 4
MAX_ROWS = 8
# Bytes of the input one task should stay within: a quarter of a 1 MiB second-level cache.
TASK_BYTES = 256 << 10
# Packed weights above this are read once, by tasks that each own some channels.
RESIDENT_BYTES = 256 << 10
# Enough pieces for the threads of a small machine to share evenly.
TASKS = 16
# Multiply-adds of a task at least: waking a thread costs some microseconds, 10^5 of these each.
TASK_MACS = 1 << 18
SERIAL_MACS = 2 * TASK_MACS
# Rows assumed when their number is known only at run time.
TYPICAL_ROWS = 128


@dataclass(frozen=True)
class Tile:
    """Output pixels x vectors of output channels held in registers."""

    rows: int
    vectors: int


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
    """One image of a product: `rows` pixels (None: not known), `steps` instructions deep."""

    rows: int | None
    steps: int
    channels: int
    groups: int
    row_bytes: int
    unit: int = 1

    @property
    def known_rows(self) -> int:
        return TYPICAL_ROWS if self.rows is None else self.rows


def tile_cycles(work: Work, tile: Tile, dot: Dot) -> float:
    """Estimated cycles of one tile."""
    count = tile.rows * tile.vectors
    step = max(count * dot.cycles, (tile.rows + tile.vectors) / LOADS_PER_CYCLE, dot.latency)
    overhead = TILE_CYCLES + ROW_CYCLES * tile.rows
    return work.steps * (step + LOOP_CYCLES) + count * EPILOGUE_CYCLES + overhead


def _tiles(vectors: int, work: Work, dot: Dot) -> Iterator[Tile]:
    most = max(min(dot.accumulators // vectors, MAX_ROWS, work.known_rows), 1)
    for rows in range(1, most + 1):
        yield Tile(rows, vectors)


def _best_tile(vectors: int, work: Work, dot: Dot) -> tuple[float, Tile | None]:
    """(cycles of one panel, tile) over all pixels of an image."""
    if not vectors:
        return 0.0, None
    rows = work.known_rows
    costs = [
        (-(-rows // tile.rows) * tile_cycles(work, tile, dot), -tile.rows, tile)
        for tile in _tiles(vectors, work, dot)
    ]
    cycles, _, tile = min(costs, key=lambda c: c[:2])
    return cycles, tile


def _panels(vectors: int, work: Work, dot: Dot) -> tuple[float, int, int, Tile | None, Tile | None]:
    lanes = vectors * dot.lanes
    full, rest = divmod(work.channels, lanes)
    main_cycles, main = _best_tile(vectors if full else 0, work, dot)
    tail_cycles, tail = _best_tile(-(-rest // dot.lanes), work, dot)
    return full * main_cycles + tail_cycles, full, rest, main, tail


def panel_plan(work: Work, dot: Dot) -> tuple[int, int, int, Tile | None, Tile | None]:
    """(lanes, full panels, channels left, main tile, tail tile): the cheapest."""
    best = None
    for vectors in range(1, MAX_VECTORS + 1):
        if vectors > 1 and (vectors - 1) * dot.lanes >= work.channels:
            break
        cost, *rest = _panels(vectors, work, dot)
        if best is None or cost < best[0] * 0.99:
            best = (cost, vectors * dot.lanes, *rest)
    assert best is not None
    return best[1:]


def task_plan(work: Work, images: int, panels: int, weight_bytes: int, macs: int) -> tuple[int, int]:
    """(rows in a block, panels in a chunk) so that tasks share caches well and are enough.

    Large weights are split by channels, so that each is read once; otherwise the rows are.
    """
    units = max(work.known_rows // work.unit, 1)
    fits = max(TASK_BYTES // max(work.row_bytes * work.unit, 1), 1)
    if macs < SERIAL_MACS:
        return work.unit * units, panels
    if weight_bytes > RESIDENT_BYTES and panels > 1:
        return work.unit * _even(units, fits), max(panels // TASKS, 1)
    wanted = max(-(-min(TASKS, macs // TASK_MACS) // images), 1)
    block = _even(units, min(fits, max(units // wanted, 1)))
    return work.unit * block, panels


def _even(units: int, most: int) -> int:
    """The block size that cuts `units` into as few pieces as blocks of `most` would, evenly."""
    pieces = -(-units // most)
    return -(-units // pieces)


def _plan(work: Work, dot: Dot, images: int, stage: bool) -> Plan:
    lanes, full, rest, main, tail = panel_plan(work, dot)
    panels = work.groups if work.groups > 1 else full + (rest > 0)
    weights = work.groups * work.channels * work.steps * dot.depth * (4 if dot.depth == 1 else 1)
    macs = images * work.known_rows * work.groups * work.channels * work.steps * dot.depth
    block, chunk = task_plan(work, images, panels, weights, macs)
    blocks = 0 if work.rows is None else -(-work.rows // block)
    chunks = -(-panels // chunk)
    staged = (Stage.WHOLE if chunks > 1 else Stage.TASK) if stage else Stage.NONE
    return Plan(
        lanes, full, rest, main, tail, block // work.unit, blocks, chunk, chunks,
        macs >= SERIAL_MACS, staged,
    )  # fmt: skip


def plan_conv(g: Conv, dot: Dot, in_dtype: str) -> Plan:
    """The plan of a convolution that is not pointwise; its blocks are output rows."""
    steps = g.kernel[0] * g.kernel[1] * -(-g.group_in // dot.depth)
    row_bytes = g.stride[0] * g.width * g.channels * dot.width // g.out_width
    work = Work(g.out_height * g.out_width, steps, g.group_out, g.groups, row_bytes, g.out_width)
    stage = g.padded or in_dtype != dot.a_dtype or g.group_in % dot.depth != 0
    return _plan(work, dot, g.batch if isinstance(g.batch, int) else 1, stage)


def plan_linear(g: Linear, dot: Dot, in_dtype: str) -> Plan:
    """The plan of a matrix product; its blocks are rows."""
    images, pixels = split_lead(g.lead)
    known = isinstance(images, int) or pixels >= MAX_ROWS
    work = Work(pixels if known else None, -(-g.k // dot.depth), g.n, 1, g.k * dot.width)
    return _plan(work, dot, 1, in_dtype != dot.a_dtype or g.k % dot.depth != 0)
