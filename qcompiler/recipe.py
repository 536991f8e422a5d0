"""A recipe: what quantization is wanted, as a value that reads from and writes to TOML."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from enum import Enum
from pathlib import Path


class Activations(Enum):
    """How activations are quantized."""

    NONE = "none"
    FLOAT = "float"
    STATIC = "static"
    DYNAMIC = "dynamic"


class RangeMethod(Enum):
    """How a static range is chosen from statistics."""

    MINMAX = "minmax"
    PERCENTILE = "percentile"
    MSE = "mse"
    ENTROPY = "entropy"


class Rounding(Enum):
    """How weights are rounded to codes: each to the nearest, or together, over calibration data,
    so that errors cancel in what the layer makes of it (AdaRound, Nagel et al. 2020; GPTQ, Frantar
    et al. 2023)."""

    NEAREST = "nearest"
    ADAROUND = "adaround"
    GPTQ = "gptq"


class Scaling(Enum):
    """How the channels between two layers, or a norm and a layer, are scaled before: not at all, by
    their weights (cross-layer equalization, Nagel et al. 2019), by activations and weights
    (SmoothQuant, Xiao et al. 2023), by what rounding then costs (AWQ, Lin et al. 2024)."""

    NONE = "none"
    EQUALIZE = "equalize"
    SMOOTH = "smooth"
    AWQ = "awq"


GROUPS = (32, 64, 128)
"""Sizes a group of 4-bit weights may have: what kernels are written and proven for."""


@dataclass(frozen=True)
class Recipe:
    """activations: none (nothing is quantized), float (only weights are: `wNa16`; float32 on a
    CPU), static (calibrated) or dynamic (per row, at run time).

    weight_bits: 8 (a scale per channel) or 4 (a scale per channel and `group` weights along the
    reduction; with dynamic activations an integer factor of the channel's scale). group: 32, 64 or
    128; 0 with 8 bits.
    range: how static ranges are chosen; both may be given by their names. percentile: the share
    of values kept, in percent, for that method. keep_float: names of nodes, or paths of modules,
    that must stay float with all below them; a layer that others were folded into answers to the
    names of all of them. sums_loss: decibels that a layer may lose to more products in a 16-bit
    sum, on targets that have such sums; above 0 activations that layers alone read may get fewer
    codes for it, and with static activations rows a scale of their own. max_drop: what is fastest
    is chosen of all that is estimated to lose no more decibels at the outputs than codes of all 8
    bits with the safest sums do, and as many more; None: `sums_loss` alone decides. over_weights:
    where codes of activations lose 10 dB or more, decibels that may be lost instead on top of what
    codes of weights alone lose; None: nothing is different there. max_time: milliseconds of a call
    on one core, of which the most accurate choices are made, instead of the fastest within a loss.
    rounding, scaling: methods that make the same program more accurate; all but `nearest`, `none`
    and `equalize` need calibration data. Both may be given by their names.
    """

    name: str
    activations: Activations
    range: RangeMethod = RangeMethod.MSE
    percentile: float = 99.99
    keep_float: tuple[str, ...] = ()
    sums_loss: float = 0.0
    weight_bits: int = 8
    group: int = 0
    max_drop: float | None = None
    over_weights: float | None = None
    max_time: float | None = None
    rounding: Rounding = Rounding.NEAREST
    scaling: Scaling = Scaling.NONE

    def __post_init__(self) -> None:
        keep = self.keep_float
        _expect("name", self.name, "a word", isinstance(self.name, str) and _is_word(self.name))
        _expect("percentile", self.percentile, "a number in (50, 100]", _in_range(self.percentile))
        loss = self.sums_loss
        _expect("sums_loss", loss, "decibels from 0 to 100", _is_number(loss) and 0 <= loss <= 100)
        for field in ("max_drop", "over_weights"):
            lost = getattr(self, field)
            fits = lost is None or (_is_number(lost) and -100 <= lost <= 100)
            _expect(field, lost, "decibels from -100 to 100", fits)
            object.__setattr__(self, field, None if lost is None else float(lost))
        most = self.max_time
        fits = most is None or (_is_number(most) and 0 < most < math.inf)
        _expect("max_time", most, "milliseconds above 0", fits)
        _expect("max_time", most, "no max_drop beside it", None in (most, self.max_drop))
        object.__setattr__(self, "max_time", None if most is None else float(most))
        named = isinstance(keep, list | tuple) and all(isinstance(k, str) and k for k in keep)
        _expect("keep_float", keep, "a list of names", named)
        _expect("weight_bits", self.weight_bits, "8 or 4", self.weight_bits in (8, 4))
        sizes = GROUPS if self.weight_bits == 4 else (0,)
        what = f"one of {sizes} for weights of {self.weight_bits} bits"
        _expect("group", self.group, what, self.group in sizes)
        values = {
            "activations": _member("activations", Activations, self.activations),
            "range": _member("range", RangeMethod, self.range),
            "rounding": _member("rounding", Rounding, self.rounding),
            "scaling": _member("scaling", Scaling, self.scaling),
            "percentile": float(self.percentile),
            "keep_float": tuple(keep),
            "sums_loss": float(loss),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        narrow = self.weight_bits == 4
        fits = not narrow or self.activations in (Activations.FLOAT, Activations.DYNAMIC)
        _expect("activations", self.activations.value, "float or dynamic with 4-bit weights", fits)

    @property
    def needs_data(self) -> bool:
        """Whether nothing can be quantized by it without calibration data."""
        return self.activations is Activations.STATIC or self.needs_data_again

    @property
    def needs_data_again(self) -> bool:
        """Whether the data is read more than once."""
        return self.activations is not Activations.NONE and (
            self.rounding is not Rounding.NEAREST or self.scaling in (Scaling.SMOOTH, Scaling.AWQ)
        )

    @property
    def needs_statistics(self) -> bool:
        """Whether anything is decided by statistics of activations."""
        return self.activations is not Activations.FLOAT or self.scaling is Scaling.SMOOTH

    def dropping(self, decibels: float) -> Recipe:
        """The same that may lose so much. Raises ValueError where it has nothing to choose."""
        self._require_choices()
        return replace(self, max_drop=decibels, over_weights=None, max_time=None)

    def lasting(self, milliseconds: float) -> Recipe:
        """The same that may take so long. Raises ValueError where it has nothing to choose, or no
        noise to choose by."""
        self._require_choices()
        if self.activations is not Activations.STATIC:
            raise ValueError(
                f"recipe {self.name!r} sees no data, from which to tell what is accurate; use auto"
            )
        return replace(self, max_drop=None, over_weights=None, max_time=milliseconds)

    def _require_choices(self) -> None:
        if not self.sums_loss:
            raise ValueError(
                f"recipe {self.name!r} has nothing to choose; use auto, int8-fast or int8-dynamic"
            )

    def to_toml(self) -> str:
        given = {k: v for k, v in asdict(self).items() if v is not None}
        rows = {k: v.value if isinstance(v, Enum) else v for k, v in given.items()}
        return "".join(f"{k} = {_toml(v)}\n" for k, v in rows.items())

    @staticmethod
    def from_toml(text: str) -> Recipe:
        """Raises ValueError naming the field that is missing, unknown or of a wrong kind."""
        rows = _read_toml(text)
        known = {f.name for f in fields(Recipe)}
        unknown = sorted(set(rows) - known)
        if unknown:
            raise ValueError(f"recipe: unknown field {unknown[0]!r}; known: {sorted(known)}")
        missing = sorted({"name", "activations"} - set(rows))
        if missing:
            raise ValueError(f"recipe: field {missing[0]!r} is missing")
        return Recipe(**rows)  # type: ignore[arg-type]


def _expect(field: str, value: object, expected: str, fits: bool) -> None:
    if not fits:
        raise ValueError(f"recipe: {field}: expected {expected}, got {value!r}")


def _is_word(text: str) -> bool:
    """Whether the header of a graph's text can hold the name."""
    return text.split() == [text]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _in_range(percentile: object) -> bool:
    return _is_number(percentile) and 50.0 < percentile <= 100.0  # type: ignore[operator]


def _member(field: str, kind: type[Enum], value: object) -> Enum:
    """A member of the enum, also by its value, as TOML has it."""
    if isinstance(value, kind):
        return value
    found = next((m for m in kind if m.value == value), None)
    names = ", ".join(m.value for m in kind)
    _expect(field, value, f"one of {names}", found is not None)
    assert found is not None
    return found


def _toml(value: object) -> str:
    import json

    return json.dumps(list(value) if isinstance(value, tuple) else value)


def _read_toml(text: str) -> dict[str, object]:
    import sys

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise ValueError(f"recipe: {e}") from e


# What a layer may lose to more products in a 16-bit sum: with 5 dB most convolutions add 8 or 16,
# most linear layers 8. ResNet-50 on AVX2 then takes 0.77 of the time of int8, at 0.6 dB less; 6 dB
# save 2 % more, but cost ViT-B/16 another 2.3 dB, and GPT-2 with dynamic activations 2.9.
SUMS_LOSS = 5.0

RECIPES: tuple[Recipe, ...] = (
    Recipe("float32", Activations.NONE),
    Recipe("int8", Activations.STATIC),
    Recipe("int8-fast", Activations.STATIC, sums_loss=SUMS_LOSS),
    Recipe("auto", Activations.STATIC, sums_loss=SUMS_LOSS, max_drop=0.0, over_weights=3.0),
    Recipe("int8-dynamic", Activations.DYNAMIC, sums_loss=SUMS_LOSS),
    Recipe("w8a16", Activations.FLOAT),
    Recipe("w4a16", Activations.FLOAT, weight_bits=4, group=32),
    Recipe("w4a8", Activations.DYNAMIC, weight_bits=4, group=32),
)
PLANNED = ("float16", "bfloat16")


def recipe_of(recipe: str | Recipe) -> Recipe:
    """A recipe by name, from a .toml path, or as given. Raises ValueError otherwise."""
    if isinstance(recipe, Recipe):
        return recipe
    if not isinstance(recipe, str):
        raise ValueError(f"recipe: expected a name or a Recipe, got {type(recipe).__name__}")
    if recipe.endswith(".toml"):
        try:
            return Recipe.from_toml(Path(recipe).read_text())
        except ValueError as e:
            raise ValueError(f"{recipe}: {e}") from e
    found = next((r for r in RECIPES if r.name == recipe), None)
    if found is not None:
        return found
    names = ", ".join(r.name for r in RECIPES)
    what = "is not done yet" if recipe in PLANNED else "is not a recipe"
    raise ValueError(f"recipe {recipe!r} {what}; choose one of {names}, or a .toml file")
