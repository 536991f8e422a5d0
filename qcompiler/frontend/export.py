"""Exporting: any of the accepted sources becomes an ExportedProgram, or one clear error."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr
from io import StringIO
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from qcompiler.frontend.alone import own_failure, read_out
from qcompiler.frontend.dims import Axis, symbolic_axes
from qcompiler.frontend.errors import TraceError, first_line, place_of
from qcompiler.frontend.regions import places_of, put_back
from qcompiler.frontend.signature import on_result, register_dataclasses

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Axes = list[dict[int, Axis]]  # for each tensor among the inputs

LOUD = ("torch.export", "torch._export", "torch.fx", "torch._dynamo", "torch._subclasses")
"""Loggers that print pages about what becomes one line here."""


def exported(
    source: Any,
    example_inputs: Any,
    kwargs: Mapping[str, Any] | None,
    dynamic_shapes: Any,
) -> tuple[ExportedProgram, Axes]:
    """The program, functional but not decomposed, and what the user said of symbolic axes."""
    if isinstance(source, ExportedProgram):
        with quiet():
            return _functional(source), []
    if not isinstance(source, torch.nn.Module):
        kind = type(source).__name__
        raise TraceError(f"expected a Module, ExportedProgram or GraphModule to trace, got {kind}")
    if isinstance(source, torch.jit.ScriptModule):
        raise TraceError("a TorchScript module has no Python code to trace; trace the module it "
                         "was scripted from")  # fmt: skip
    refuse_quantized(source)
    refuse_training(source)
    args, named = arguments(example_inputs, kwargs)
    axes = _axes(source, args, named, dynamic_shapes)
    with quiet():
        program = _export(source, args, named, dynamic_shapes)
        return _functional(program, source), axes


def arguments(example_inputs: Any, kwargs: Mapping[str, Any] | None) -> Arguments:
    """A tensor is one argument, a mapping the keyword arguments, a sequence the positional ones."""
    if isinstance(example_inputs, Mapping):
        return (), {**example_inputs, **(kwargs or {})}
    if example_inputs is None:
        return (), dict(kwargs or {})
    if isinstance(example_inputs, tuple | list):
        return tuple(example_inputs), dict(kwargs or {})
    return (example_inputs,), dict(kwargs or {})


QUANTIZED = (
    "torch.ao.nn.quantized.", "torch.ao.nn.intrinsic.quantized.", "torch.ao.nn.sparse.quantized.",
    "torch.ao.nn.qat.", "torch.ao.nn.intrinsic.qat.", "torch.ao.quantization.observer",
    "torch.ao.quantization.fake_quantize",
)  # fmt: skip
"""Modules of models that PyTorch's own quantization has prepared or converted."""
FLOAT_EVEN_SO = ("FloatFunctional", "FXFloatFunctional")


def refuse_quantized(module: torch.nn.Module) -> None:
    """Raises TraceError naming the first submodule that holds or observes quantized values."""
    for path, child in module.named_modules():
        kind = type(child)
        if f"{kind.__module__}.".startswith(QUANTIZED) and kind.__name__ not in FLOAT_EVEN_SO:
            where = f"its submodule {path!r}" if path else "it"
            raise TraceError(
                f"the module {type(module).__name__} is quantized by PyTorch already, or prepared "
                f"for that: {where} is a {kind.__module__}.{kind.__name__}; pass the float model, "
                "which qcompiler quantizes itself"
            )


def refuse_training(module: torch.nn.Module) -> None:
    """Raises TraceError naming the first submodule in training mode."""
    for path, child in module.named_modules():
        if child.training and not _without_behaviour(child):
            where = f"its submodule {path!r} ({type(child).__name__})" if path else "it"
            raise TraceError(
                f"the module {type(module).__name__} cannot be traced: {where} is in training "
                "mode; call module.eval() first"
            )


def _without_behaviour(module: torch.nn.Module) -> bool:
    """Plain containers, traced graphs, and what torch.export itself adds to its result."""
    plain = (torch.nn.Module, torch.nn.ModuleList, torch.nn.ModuleDict)
    made = type(module).__module__.startswith(("torch.export", "torch.fx", "torch._export"))
    return type(module) in plain or made or isinstance(module, fx.GraphModule)


def _axes(
    source: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: Any
) -> Axes:
    if dynamic is None:
        return []
    leaves = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    if not isinstance(dynamic, Mapping):
        return symbolic_axes(dynamic, leaves, (*args, *kwargs.values()))
    bound = inspect.signature(source.forward).bind(*args, **kwargs).arguments
    tree: dict[str, Any] = {}
    for name, value in bound.items():
        kind = inspect.signature(source.forward).parameters[name].kind
        tree.update(value if kind is inspect.Parameter.VAR_KEYWORD else {name: value})
    return symbolic_axes(dynamic, leaves, tree)


def _export(
    source: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: Any
) -> ExportedProgram:
    register_dataclasses((args, kwargs))
    args, kwargs = distinct((args, kwargs))
    hook = source.register_forward_hook(on_result)
    try:
        return torch.export.export(source, args, kwargs, dynamic_shapes=dynamic, strict=False)
    except Exception as error:
        raise explained(error, source, (args, kwargs)) from error
    finally:
        hook.remove()


def distinct(arguments: Arguments) -> Arguments:
    """A tensor given for two inputs becomes two: torch.export would read one of them for both."""
    seen: set[int] = set()

    def own(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        again = id(leaf) in seen
        seen.add(id(leaf))
        return leaf.detach().clone() if again else leaf

    found: Arguments = pytree.tree_map(own, arguments)
    return found


def _functional(program: ExportedProgram, source: torch.nn.Module | None = None) -> ExportedProgram:
    """Functionalised, every op that PyTorch would take apart kept whole."""
    places = places_of(program.graph_module)
    try:
        functional: ExportedProgram = program.run_decompositions({})
        put_back(functional.graph_module, places)
        return functional
    except Exception as error:
        raise explained(error, source) from error


def explained(
    error: Exception, source: torch.nn.Module | None, given: Arguments | None = None
) -> TraceError:
    """One or two lines instead of torch's pages: what, where, what to do."""
    where = place_of(error, source)
    at = f" at {where}" if where else ""
    if isinstance(error, GuardOnDataDependentSymNode) or _mentions(error, "data-dependent"):
        read = read_out(error)
        if read:
            return TraceError(
                f"the model depends on its data{at}: {read} makes a Python number of a tensor, "
                "which a graph has not; compute with the tensor itself, torch.where for a branch"
            )
        return TraceError(
            f"the model's control flow depends on its data{at}; "
            "a graph has no such branch: use torch.where, or trace the parts separately"
        )
    if _mentions(error, "dynamic_shapes", "Constraints violated", "specialized"):
        return TraceError(f"dynamic_shapes do not hold{at}: {_constraint(error)}")
    own = own_failure(source, *given) if source is not None and given else None
    if own:
        return TraceError(own)
    return TraceError(f"torch.export failed{at}: {type(error).__name__}: {first_line(error)}")


def _mentions(error: BaseException, *words: str) -> bool:
    return any(w in str(error) for w in words)


def _constraint(error: Exception) -> str:
    """The first line that says which dimension is wrong."""
    lines = [x.strip(" -") for x in str(error).splitlines()]
    telling = [x for x in lines if "specialized" in x or "inferred" in x or "Not all values" in x]
    return (telling or [first_line(error)])[0].split(". ")[0]


@contextmanager
def quiet() -> Iterator[None]:
    """Torch's own reports of an export are not shown; the error says what matters."""
    loggers = [logging.getLogger(n) for n in LOUD]
    levels = [x.level for x in loggers]
    with ExitStack() as stack:
        stack.enter_context(redirect_stderr(StringIO()))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
