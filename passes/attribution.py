"""Attribution: the error at the outputs, shared out among all quantizers so that the parts add up.

Along the path on which every error grows from nothing to what it is, the outputs change by the sum
of what each error contributes: integrated gradients (Sundararajan et al. 2017), with the errors
as they are in the place of differences to a baseline. Projected on the error at the outputs they
add up to its power, whatever cancels or amplifies what.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompiler.graph import Graph, Node
from qcompiler.interpret import constant_values, run

from .coded_values import Biased, Coded, coded_values, grown

if TYPE_CHECKING:
    from torch import Tensor

POINTS = 4
"""Gauss-Legendre points along the path: exact where outputs are polynomials of degree 7 in it."""

SIDE = 0.5
"""The path runs from 0 to 1, the points from -1 to 1."""


Source = Coded | Biased
Errors = dict[tuple[Source, str], "Tensor"]
"""The error of each quantizer and bias by part, float64."""
Read = Callable[[Coded, "Tensor", "Tensor"], "Tensor"]
"""What is read of a quantizer: given the value itself and what its codes say of it."""
Change = Callable[["Tensor"], "Tensor"]
"""What a value is to be read as."""
NO_BIASES: Mapping[Node, Tensor] = MappingProxyType({})


@dataclass(frozen=True)
class Attribution:
    """A QDQ graph and what it was made from. exact: the PLANNED graph. integer: what became of it.

    coded, biased: where errors come from.
    """

    exact: Graph
    qdq: Graph
    integer: Graph
    coded: tuple[Coded, ...]
    biased: tuple[Biased, ...]

    @staticmethod
    def of(exact: Graph, qdq: Graph, integer: Graph, fine: Collection[str] = ()) -> Attribution:
        """fine: the names of values that additions take with 8 bits more than codes have."""
        coded, biased = coded_values(exact, qdq, fine)
        return Attribution(exact, qdq, integer, coded, biased)

    def shares(self, samples: Sequence[Sequence[Tensor]]) -> Shares:
        """What each quantizer adds to the noise at the outputs."""
        total = Shares()
        for sample in samples:
            total = total.plus(self._shares(sample), 1 / len(samples))
        return total

    def alone(self, coded: Coded, samples: Sequence[Sequence[Tensor]]) -> float:
        """The noise at the outputs, as a share of their signal power, where nothing but this is
        quantized."""

        def only(c: Coded, x: Tensor, read: Tensor) -> Tensor:
            return c.value(x, read) if c is coded else x

        pairs = [(self._reference(s), self._outputs(s, only)) for s in samples]
        return sum(_noise(y, z) for y, z in pairs) / max(len(pairs), 1)

    def noise(
        self, samples: Sequence[Sequence[Tensor]], changed: Mapping[Coded, Change] | None = None,
        biases: Mapping[Node, Tensor] | None = None,
    ) -> float:  # fmt: skip
        """The same where all is quantized, but for some values and biases, which are changed.

        What all others round away is what it was: rounded anew, it would be other noise of the same
        power, and hide what the change does.
        """
        found = 0.0
        for sample in samples:
            errors = self._rounded_away(sample)

            def read(c: Coded, x: Tensor, value: Tensor, known: Errors = errors) -> Tensor:
                if changed and c in changed:
                    return changed[c](x)
                return value if c.exact is not None else x + known[c, "all"].float()

            found += _noise(self._reference(sample), self._outputs(sample, read, biases or {}))
        return found / max(len(samples), 1)

    def _rounded_away(self, sample: Sequence[Tensor]) -> Errors:
        """The errors of activations on a sample, each as a whole."""
        for known, errors in self._seen:
            if known is sample:
                return errors
        found: Errors = {}
        for (c, _), error in self._errors(sample, self._integers(sample)[1])[1].items():
            if isinstance(c, Coded) and c.exact is None:
                whole = (c, "all")
                found[whole] = found[whole] + error.float() if whole in found else error.float()
        self._seen.append((sample, found))
        return found

    @cached_property
    def _seen(self) -> list[tuple[Sequence[Tensor], Errors]]:
        """Samples seen before, and the errors on them."""
        return []

    @cached_property
    def _fixed(self) -> dict[Node, Any]:
        """Values of the QDQ graph that are the same for every sample."""
        return constant_values(self.qdq)

    @cached_property
    def _weights(self) -> dict[Coded, Tensor]:
        """What the codes of each weight say."""
        return {c: self._fixed[c.read] for c in self.coded if c.exact is not None}

    @cached_property
    def _references(self) -> list[tuple[Sequence[Tensor], list[Tensor]]]:
        """Samples seen before, and what the exact graph makes of them."""
        return []

    def _reference(self, sample: Sequence[Tensor]) -> list[Tensor]:
        for known, outputs in self._references:
            if known is sample:
                return outputs
        self._references.append((sample, _outputs(self.exact, sample)))
        return self._references[-1][1]

    def _outputs(
        self, sample: Sequence[Tensor], read: Read, biases: Mapping[Node, Tensor] = NO_BIASES
    ) -> list[Tensor]:
        """Weights that are read as they were have their bias as it was."""
        import torch

        plain = {c.layer for c, w in self._weights.items() if read(c, _exact(c), w) is c.exact}
        keep = {b.bias: b.exact for b in self.biased if b.layer in plain}
        with torch.no_grad():
            return self._run(sample, read, {**keep, **biases})

    def _run(
        self, sample: Sequence[Tensor], read: Read, keep: Mapping[Node, Tensor]
    ) -> list[Tensor]:  # fmt: skip
        """keep: what some nodes are to be."""
        by_read = {c.read: c for c in self.coded if c.exact is None}
        wanted, sources = {c.source for c in by_read.values()}, {}

        def change(node: Node, value: Any) -> Any:
            if node in wanted:
                sources[node] = value
            c = by_read.get(node)
            return value if c is None else read(c, sources[c.source], value)

        weights = {c.read: read(c, _exact(c), w) for c, w in self._weights.items()}
        kept = {**self._fixed, **weights, **keep}
        values = run(self.qdq, sample, keep=kept, change=change)
        return _floats(values[: len(self.qdq.outputs)])

    def _shares(self, sample: Sequence[Tensor]) -> Shares:
        y, (z, codes) = self._reference(sample), self._integers(sample)
        through, errors = self._errors(sample, codes)
        pairs = [_finite(a, b) for a, b in zip(y, z, strict=True)]
        scores = [(b - a) / (float(a.square().sum()) or 1.0) for a, b in pairs]
        last = [_finite(b, q) for b, q in zip(z, through, strict=True)]
        beyond = sum(float((e * (b - q)).sum()) for e, (b, q) in zip(scores, last, strict=True))
        parts: dict[Key, float] = {}
        for point, weight in zip(*np.polynomial.legendre.leggauss(POINTS), strict=True):
            gradients = self._gradients(sample, errors, SIDE * (point + 1), scores)
            for (what, part), error in errors.items():
                if what in gradients:
                    amount = float((gradients[what].double() * error).sum())
                    key = (*_named(what), part)
                    parts[key] = parts.get(key, 0.0) + SIDE * float(weight) * amount
        return Shares(_noise(y, z), beyond, parts)

    def _integers(self, sample: Sequence[Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
        """(outputs of the INTEGER graph, its values of the quantizers' codes by their names)."""
        import torch

        wanted, codes = {c.read.inputs[0].name for c in self.coded}, {}

        def see(node: Node, value: Any) -> None:
            if node.name in wanted:
                codes[node.name] = value

        with torch.no_grad():
            values = run(self.integer, sample, see=see)
        return _floats(values[: len(self.integer.outputs)]), codes

    def _errors(
        self, sample: Sequence[Tensor], codes: Mapping[str, Tensor]
    ) -> tuple[list[Tensor], Errors]:
        """(outputs of the QDQ graph where it reads the codes that integers made, what each
        quantizer does to what it gets there)."""
        import torch

        found: Errors = {(b, "weights"): b.error for b in self.biased}

        def read(c: Coded, x: Tensor, coded: Tensor) -> Tensor:
            value = c.value(x, coded)
            if c.exact is not None:
                error, more = value.double() - x, grown(c)
                found[c, "proof"], found[c, "weights"] = error * more, error * (1 - more)
                return value
            made = c.said_by(codes.get(c.read.inputs[0].name), value)
            found[c, "clipping"] = c.clipped(x).double() - x
            found[c, "activations"] = value.double() - x - found[c, "clipping"]
            found[c, "requantize"] = made.double() - value.double()
            return made

        with torch.no_grad():
            return self._run(sample, read, {}), found

    def _gradients(
        self, sample: Sequence[Tensor], errors: Errors, along: float, scores: Sequence[Tensor]
    ) -> dict[Source, Tensor]:
        """Of `scores . outputs` for each value that has errors, where all these are at that point
        of their way."""
        import torch

        whole: dict[Source, Tensor] = {}
        for (what, _), error in errors.items():
            whole[what] = whole[what] + error if what in whole else error
        leaves = {what: torch.zeros(e.shape, requires_grad=True) for what, e in whole.items()}

        def at(what: Source, x: Tensor) -> Tensor:
            return x + (along * whole[what]).float() + leaves[what]

        keep = {b.bias: at(b, b.exact) for b in self.biased}
        with torch.enable_grad():
            outputs = self._run(sample, lambda c, x, read: at(c, x), keep)
            terms = [(s.float() * y)[s != 0].sum() for s, y in zip(scores, outputs, strict=True)]
            tracked = [t for t in terms if t.requires_grad]
        if tracked:
            torch.autograd.backward(tracked)
        return {what: leaf.grad for what, leaf in leaves.items() if leaf.grad is not None}


Key = tuple[str, bool, str]
"""A quantizer's name, whether it is of weights, and the part of its error."""


@dataclass(frozen=True)
class Shares:
    """Noise at the outputs, as a share of their signal power: all of it, what integer arithmetic
    adds beyond rounding, and by quantizer and part."""

    total: float = 0.0
    integers: float = 0.0
    parts: Mapping[Key, float] = field(default_factory=dict)

    def plus(self, other: Shares, factor: float) -> Shares:
        """With so much of the other."""
        parts = dict(self.parts)
        for key, amount in other.parts.items():
            parts[key] = parts.get(key, 0.0) + factor * amount
        total = self.total + factor * other.total
        return Shares(total, self.integers + factor * other.integers, parts)

    def of(self, coded: Coded) -> dict[str, float]:
        """By part."""
        wanted = _named(coded)
        return {part: v for (*name, part), v in self.parts.items() if tuple(name) == wanted}


def _named(what: Source) -> tuple[str, bool]:
    """Its name, and whether it is of weights: a bias belongs to the layer's."""
    if isinstance(what, Biased):
        return what.layer.name, True
    return what.name, what.layer is not None


def _exact(c: Coded) -> Tensor:
    assert c.exact is not None
    return c.exact


def _outputs(graph: Graph, sample: Sequence[Tensor]) -> list[Tensor]:
    """Those that hold floats."""
    import torch

    with torch.no_grad():
        return _floats(run(graph, sample)[: len(graph.outputs)])


def _floats(values: Sequence[Any]) -> list[Tensor]:
    return [v for v in values if v.is_floating_point()]


def _noise(exact: Sequence[Tensor], noisy: Sequence[Tensor]) -> float:
    """Noise power as a share of signal power, summed over outputs; see `_finite`."""
    found = 0.0
    for y, z in zip(exact, noisy, strict=True):
        a, b = _finite(y, z)
        power = float(a.square().sum())
        found += float((b - a).square().sum()) / power if power > 0 else 0.0
    return found


def _finite(exact: Tensor, noisy: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64, 0 where either is not finite: a mask of -inf is neither signal nor noise."""
    a, b = exact.double(), noisy.double()
    known = a.isfinite() & b.isfinite()
    return a.where(known, 0.0), b.where(known, 0.0)
