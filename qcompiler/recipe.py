"""A recipe: what quantization is wanted, as a value that reads from and writes to TOML."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from enum import Enum
from pathlib import Path


class Activations(Enum):
    """How activations are quantized."""

    NONE = "none"
    STATIC = "static"
    DYNAMIC = "dynamic"


class RangeMethod(Enum):
    """How a static range is chosen from statistics."""

    MINMAX = "minmax"
    PERCENTILE = "percentile"
    MSE = "mse"
    ENTROPY = "entropy"


@dataclass(frozen=True)
class Recipe:
    """activations: none (float32), static (calibrated) or dynamic (per row, at run time).

    range: how static ranges are chosen. percentile: the share of values kept, in percent, for
    that method. keep_float: names or module-path prefixes of nodes that must stay float.
    """

    name: str
    activations: Activations
    range: RangeMethod = RangeMethod.MSE
    percentile: float = 99.99
    keep_float: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 50.0 < self.percentile <= 100.0:
            raise ValueError(f"percentile must be in (50, 100], got {self.percentile}")

    def to_toml(self) -> str:
        rows = {k: v.value if isinstance(v, Enum) else v for k, v in asdict(self).items()}
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
        return Recipe(
            name=str(rows["name"]),
            activations=Activations(rows["activations"]),
            range=RangeMethod(rows.get("range", Recipe.range.value)),
            percentile=float(rows.get("percentile", Recipe.percentile)),  # type: ignore[arg-type]
            keep_float=tuple(rows.get("keep_float", ())),  # type: ignore[arg-type]
        )


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


RECIPES: tuple[Recipe, ...] = (
    Recipe("float32", Activations.NONE),
    Recipe("int8", Activations.STATIC),
    Recipe("int8-dynamic", Activations.DYNAMIC),
)
PLANNED = ("int8-fast", "w8a16", "w4a16", "w4a8", "float16", "bfloat16", "auto")


def recipe_of(recipe: str | Recipe) -> Recipe:
    """A recipe by name, from a .toml path, or as given. Raises ValueError otherwise."""
    if isinstance(recipe, Recipe):
        return recipe
    if recipe.endswith(".toml"):
        return Recipe.from_toml(Path(recipe).read_text())
    found = next((r for r in RECIPES if r.name == recipe), None)
    if found is not None:
        return found
    names = ", ".join(r.name for r in RECIPES)
    what = "is not done yet" if recipe in PLANNED else "is not a recipe"
    raise ValueError(f"recipe {recipe!r} {what}; choose one of {names}, or a .toml file")
