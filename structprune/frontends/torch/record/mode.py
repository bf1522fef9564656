"""Whether a model can compute something else in training than in eval mode, but for noise.

Noise is what dropout and stochastic depth add: it has no part in which sizes meet.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from structprune.frontends.torch.read.lower import bind, is_pointwise
from structprune.frontends.torch.record.expression import Attribute, Expression, Size, Term, leaves
from structprune.frontends.torch.record.kept import CONTAINERS, is_foreign
from structprune.frontends.torch.record.outside import names_in, places_of
from structprune.frontends.torch.record.record import PLAIN, Call, Capture
from structprune.frontends.torch.record.surroundings import NOT_THE_USERS
from structprune.frontends.torch.record.tree import modules_of
from structprune.graph.graph import Value

# The arguments by which operators learn whether the model trains.
FLAGS = ("training", "train")
# Modules of torch that do no more with their mode than to tell it an operator.
TELLING = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd, nn.RNNBase)
# How likely operators drop something: their results have the same sizes whatever it is.
CHANCES = (*FLAGS, "dropout_p", "dropout")
EMPTY = frozenset(("empty", "empty_like", "new_empty"))
DROPPING = frozenset(("dropout", "dropout_", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"))


# -- code that does not ask ------------------------------------------------------------------------


def can_ask(model: nn.Module) -> bool:
    """Whether the model's code may look at its mode. Code that never says the word does not."""
    if any(says_training(function) for function in places_of(model).functions):
        return True
    for module in modules_of(model):
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        held = (value for name, value in vars(module).items() if name not in OF_EVERY_MODULE)
        # Code of objects that hang on modules, and of torch's hooks, was not looked into.
        if not all(map(is_own_function, hooks)) or not all(map(is_simple, held)):
            return True
        kind = next(kind for kind in type(module).__mro__ if "forward" in vars(kind))
        if is_foreign(kind.__module__) and not isinstance(module, TELLING) and says_training(vars(kind)["forward"]):
            return True
    return False


OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def says_training(function: Any) -> bool:
    return not isinstance(function, types.FunctionType) or "training" in words_in(function.__code__)


def words_in(code: types.CodeType) -> Iterator[str]:
    """The names and the texts in some code."""
    yield from names_in(code)
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            yield from words_in(each)
        elif isinstance(each, str):
            yield each


def is_own_function(hook: Any) -> bool:
    return isinstance(hook, types.FunctionType) and not is_foreign(hook.__module__)


def is_simple(value: Any) -> bool:
    """Numbers, texts, tensors, functions, modules, and containers of these."""
    kind = type(value)
    if kind in PLAIN or isinstance(value, Tensor | nn.Module | type | types.FunctionType | types.BuiltinFunctionType):
        return True
    if issubclass(kind, CONTAINERS):
        return all(map(is_simple, value.values() if isinstance(value, dict) else value))
    return is_foreign(kind.__module__)


# -- what is computed in both modes ----------------------------------------------------------------


def adds_noise_alone(capture: Capture, training: Capture) -> bool:
    """Every operator in training takes the same numbers, to the same values, as one in eval mode; but for noise."""
    known: dict[Any, int] = {}
    before, after = Signatures(capture, known), Signatures(training, known)
    before.read()
    size = len(known)
    after.read()
    if len(known) != size:
        return False
    same_outputs = [before.of(value) for value in capture.outputs] == [after.of(value) for value in training.outputs]
    return same_outputs and after.asked() <= before.asked()


NOISE = -1


class Signatures:
    """What each value is: two values with one number come from the same operators on the same inputs."""

    def __init__(self, capture: Capture, known: dict[Any, int]) -> None:
        self.capture = capture
        self.known = known
        self.numbers: dict[Value, int] = {}
        # What noise was added to, or scaled by.
        self.noisy: set[Value] = set()
        for place, value in enumerate(capture.inputs):
            self.numbers[value] = self.number(("input", place))

    def number(self, key: Any) -> int:
        return self.known.setdefault(key, len(self.known))

    def of(self, value: Value) -> int:
        found = self.numbers.get(value)
        if found is None:
            found = self.numbers[value] = self.number(self.origin(value))
        return found

    def origin(self, value: Value) -> Any:
        constant = self.capture.constants.get(value)
        if constant is None:
            return value.parameter, value.shape
        data = constant.detach().cpu().contiguous().flatten().view(torch.uint8) if constant.numel() else constant
        return "constant", str(constant.dtype), value.shape, data.numpy().tobytes() if constant.numel() else b""

    def read(self) -> None:
        for call in self.capture.calls:
            self.call(call)

    def call(self, call: Call) -> None:
        operands = [(value, self.of(value)) for value in call.tensors()]
        output = call.outputs[0] if len(call.outputs) == 1 else None
        through = [(value, number) for value, number in operands if number != NOISE]
        name = getattr(call.target, "_opname", "")
        if output is not None and name in DROPPING:
            self.numbers[output] = operands[0][1]
        elif output is not None and (is_new_noise(call, name) or (operands and not through)):
            self.numbers[output] = NOISE
        elif output is not None and len(operands) > len(through) == 1 and is_each_for_itself(call, through[0][0]):
            self.numbers[output] = through[0][1]
            self.noisy.add(output)
        else:
            key = self.key(call)
            if output is not None and len(operands) == 1 and (key, 0, output.shape) not in self.known:
                value, number = operands[0]
                if value in self.noisy and is_each_for_itself(call, value):  # noise is scaled
                    self.numbers[output] = number
                    return
            for place, value in enumerate(call.outputs):
                self.numbers[value] = self.number((key, place, value.shape))

    def key(self, call: Call) -> Any:
        given = bind(call.target, call.args, call.kwargs) if hasattr(call.target, "_schema") else call.kwargs
        expressions = tuple((name, self.mapped(each)) for name, each in call.expressions.items())
        arguments = tuple((name, self.plain(each)) for name, each in given.items() if name not in CHANCES)
        return str(call.target), arguments, expressions

    def plain(self, argument: Any) -> Any:
        if isinstance(argument, Value):
            return "value", self.of(argument)
        if isinstance(argument, list | tuple):
            return tuple(map(self.plain, argument))
        return argument if type(argument) in PLAIN else str(argument)

    def mapped(self, expression: Expression | tuple[Any, ...] | None) -> Any:
        """An expression in which sizes are those of numbered values."""
        if isinstance(expression, tuple):
            return tuple(map(self.mapped, expression))
        if isinstance(expression, Size):
            return "size", self.of(expression.value), expression.axis
        if isinstance(expression, Term):
            return expression.how, tuple(map(self.mapped, expression.operands))
        return expression

    def asked(self) -> set[Any]:
        """What the code did with its numbers besides: comparisons, and conversions."""
        capture: Capture = self.capture
        # Torch's own functions check sizes, in training others than in eval mode.
        by_code = (each for each in capture.compared.values() if not each.file.startswith(NOT_THE_USERS))
        compared = {(self.mapped(each.left), each.sign, self.mapped(each.right)) for each in by_code}
        # Sizes of tensors are true whatever becomes of them.
        converted = (each for each, _ in (*capture.integers, *capture.floats) if holds_attribute(each))
        return compared | set(map(self.mapped, converted))


def is_new_noise(call: Call, name: str) -> bool:
    """What chance makes, and memory for it, of sizes that follow from tensors."""
    is_random = torch.Tag.nondeterministic_seeded in getattr(call.target, "tags", ())
    is_all_random = is_random and (not list(call.tensors()) or name.endswith(("_like", "_")))
    if not is_all_random and name not in EMPTY:
        return False
    sizes = bind(call.target, call.args, call.kwargs).get("size", ())
    made = call.expressions.get("size") or (None,) * len(sizes)
    # A size that the code holds as it is may be that of a width.
    is_open = all(size == 1 or each is not None for size, each in zip(sizes, made, strict=True))
    return is_open and not any(map(holds_attribute, call.expressions.values()))


def holds_attribute(expression: Any) -> bool:
    if isinstance(expression, tuple):
        return any(map(holds_attribute, expression))
    return any(isinstance(leaf, Attribute) for leaf in leaves(expression))


def is_each_for_itself(call: Call, value: Value) -> bool:
    """An operator that changes each number by itself, and gives as many."""
    return is_pointwise(call.target) and value.shape == call.outputs[0].shape
