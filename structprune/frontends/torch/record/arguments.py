"""The arguments of an operator as plain numbers, and where these come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from structprune.frontends.torch.record.expression import Expression
from structprune.frontends.torch.record.ghost import Ghost
from structprune.frontends.torch.record.number import Ledger, expression_of, plain
from structprune.frontends.torch.record.record import PLAIN
from structprune.frontends.torch.record.sized import SizedParameter, SizedTensor

NUMBERS = (torch.SymInt, torch.SymFloat)
# What most arguments are.
WITHOUT = PLAIN | {Ghost, SizedParameter, SizedTensor}
NOTHING: Mapping[str, Any] = {}


def plain_arguments(
    ledger: Ledger, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any], Mapping[str, Any]]:
    """The arguments without expressions, and the expressions by the names of the arguments."""
    has_numbers = any(map(holds_number, args)) or any(map(holds_number, kwargs.values()))
    converted = ledger.converted
    if not has_numbers and not converted:
        return args, kwargs, NOTHING
    found: dict[str, Any] = {}
    names = [argument.name for argument in function._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    for name, argument in given.items():
        if holds_number(argument):
            found[name] = expressions_in(argument)
        elif converted and not isinstance(argument, Tensor):
            known = taken(argument, converted)
            if known is not None:
                found[name] = known
    converted.clear()
    if has_numbers:
        args = tuple(map(plain_in, args))
        kwargs = {name: plain_in(argument) for name, argument in kwargs.items()}
    return args, kwargs, found


def holds_number(argument: Any) -> bool:
    kind = type(argument)
    if kind in WITHOUT:
        return False
    if kind is list or kind is tuple:
        return any(type(each) not in WITHOUT and holds_number(each) for each in argument)
    return issubclass(kind, NUMBERS)


def plain_in(argument: Any) -> Any:
    kind = type(argument)
    if kind is list or kind is tuple:
        return kind(map(plain_in, argument))
    return plain(argument) if issubclass(kind, NUMBERS) else argument


def expressions_in(argument: Any) -> Any:
    """For each number its expression; None for what is no expression."""
    if isinstance(argument, list | tuple):
        return tuple(map(expressions_in, argument))
    return expression_of(argument) if issubclass(type(argument), NUMBERS) else None


def taken(argument: Any, converted: list[tuple[Expression, int | float]]) -> Any:
    """Torch converts the numbers that an operator has no symbolic place for one after another, in the order of its
    arguments."""
    if isinstance(argument, list | tuple):
        inner = tuple(taken(each, converted) for each in argument)
        if inner and inner[0] is not None and len(set(argument)) == 1 and set(inner[1:]) == {None}:
            # One number that stands for all entries: a kernel of `n` is one of [n, n].
            return inner[:1] * len(inner)
        return inner if any(each is not None for each in inner) else None
    if isinstance(argument, bool) or not isinstance(argument, int | float):
        return None
    if converted and converted[0][1] == argument:
        return converted.pop(0)[0]
    return None
