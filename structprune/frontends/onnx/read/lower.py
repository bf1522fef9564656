"""Lower a traced ONNX graph to the neutral graph.

Each operator has an entry: the neutral operator that it is, its operands, and which of its attributes, and of its
inputs that hold sizes, hold which fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from structprune.frontends.lowering import Lowered
from structprune.frontends.onnx.record.trace import (
    Numbers,
    Trace,
    constant,
    outer_values,
    run_order,
    sizes,
    subgraphs,
    taken_branch,
    version_of,
)
from structprune.graph.graph import Graph, Op, Value, Where
from structprune.graph.operator import RULES, Custom
from structprune.operators.routing import Opaque, Route, straight

NEWEST = onnx.defs.onnx_opset_version()

# Axes of more parts than that, one after another, are not told apart.
MOST_PARTS = 1 << 14


@dataclass(slots=True, eq=False)
class Call:
    """One node, with the neutral values of its operands and what is known of their numbers."""

    node: ir.Node
    version: int
    inputs: list[Value | None]
    # The outputs that something reads, by their places.
    outputs_at: dict[int, Value]
    numbers: list[Numbers | None]
    where: Where
    trace: Trace

    @property
    def outputs(self) -> list[Value]:
        return list(self.outputs_at.values())

    def input(self, place: int) -> Value | None:
        return self.inputs[place] if place < len(self.inputs) else None

    def x(self) -> Value:
        """The first operand, which every operator with an entry has."""
        first = self.inputs[0]
        if first is None:
            raise ValueError(f"{self.node.op_type} without its first input")
        return first

    def number(self, place: int) -> Numbers | None:
        """The numbers of an input, where they are known."""
        return self.numbers[place] if place < len(self.numbers) else None

    def integers(self, place: int, attribute: str | None = None) -> list[int] | None:
        """Integers that older versions hold in an attribute and newer ones in an input."""
        if attribute is not None and attribute in self.node.attributes:
            return [int(each) for each in self.node.attributes[attribute].as_ints()]
        found = self.number(place)
        return None if found is None else [int(each) for each in found.reshape(-1)]

    def get(self, name: str, default: Any) -> Any:
        """An attribute's value."""
        attribute = self.node.attributes.get(name)
        if attribute is None:
            return default
        return list(attribute.value) if isinstance(attribute.value, tuple) else attribute.value

    def has(self, place: int) -> bool:
        """The node was given this input."""
        return place < len(self.node.inputs) and self.node.inputs[place] is not None


Entry = Callable[[Call], Lowered | list[Lowered]]
ENTRIES: dict[tuple[str, str], Entry] = {}


def entry(*names: str, domain: str = "") -> Callable[[Entry], Entry]:
    """Register how operators are lowered."""

    def register(function: Entry) -> Entry:
        for name in names:
            assert (domain, name) not in ENTRIES, f"{domain}::{name} has two entries"
            ENTRIES[domain, name] = function
        return function

    return register


def has_borders(call: Call) -> bool:
    """Zeros stand around the operand of a convolution, or may."""
    return any(call.get("pads", ())) or call.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")


def has_scales(call: Call) -> bool:
    """The product and what is added to it are multiplied by numbers."""
    return not call.get("alpha", 1.0) == call.get("beta", 1.0) == 1


def opaque(call: Call, why: str | None = None) -> Lowered:
    given = list(dict.fromkeys(value for value in call.inputs if value is not None))
    return Lowered(Opaque(why), given)


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """A constant tensor as a parameter: where it lies, and the one use it stands for (None for all)."""

    name: str
    value: ir.Value
    tensor: ir.TensorProtocol
    use: tuple[ir.Node, int] | None = None


@dataclass(frozen=True, slots=True)
class Roles:
    """What a constant is for those that read it."""

    is_weight: bool
    is_shared_by_accident: bool
    is_trained: bool


# Inputs that are measured or chosen, not trained.
UNTRAINED = {
    ("", "BatchNormalization"): (3, 4),
    ("", "QuantizeLinear"): (1, 2),
    ("", "DequantizeLinear"): (1, 2),
    ("", "MatMulInteger"): (2, 3),
    ("", "ConvInteger"): (2, 3),
    ("", "Div"): (1,),  # nothing is divided by zero
}


class Lowering:
    """One pass over a traced model."""

    def __init__(self, model: ir.Model, trace: Trace) -> None:
        self.model = model
        self.trace = trace
        self.values: dict[ir.Value, Value] = {}
        self.stored: dict[str, Stored] = {}
        self.parameters: dict[str, Value] = {}
        self.ops: list[Op] = []
        self.numbers: dict[ir.Value, bool] = {}
        self.roles: dict[ir.Value, Roles] = {}
        # Of how many parts a value is put together at most, where they are many.
        self.parts: dict[ir.Value, int] = {}
        # What is computed from shapes and constants alone.
        self.arithmetic: set[ir.Value] = set()
        self.outputs_of_model = set(model.graph.outputs)

    def graph(self) -> Graph:
        fed = [value for value in self.model.graph.inputs if not value.is_initializer()]
        inputs = [known for value in fed if (known := self.value(value)) is not None]
        for node in run_order(self.model.graph, self.trace):
            self.lower(node)
        outputs = [known for value in self.model.graph.outputs if (known := self.value(value)) is not None]
        self.note_parameters(outputs)
        # Results that are computed from sizes alone: the sizes are as good as a result.
        sized = self.measured_by([value for value in self.model.graph.outputs if value in self.arithmetic])
        outputs += [value for value in dict.fromkeys(sized) if value not in outputs]
        return Graph(self.ops, self.parameters, inputs, outputs)

    # -- values --------------------------------------------------------------------------------

    def value(self, value: ir.Value | None, node: ir.Node | None = None, place: int = 0) -> Value | None:
        """The neutral value of an operand; None where nothing is known of it."""
        if value is None:
            return None
        known = self.values.get(value)
        if known is not None:
            return known
        found = self.trace.types.get(value)
        if found is None:
            return None
        made = Value(str(value.name), found.shape, is_mask=found.dtype == ir.DataType.BOOL)
        tensor = constant(value)
        if tensor is not None and (roles := self.roles_of(value, tensor)).is_weight:
            own = node is not None and roles.is_shared_by_accident
            made.parameter = self.store(value, tensor, (node, place) if own and node is not None else None)
            made.is_trained = roles.is_trained
            if own:
                return made
        self.values[value] = made
        return made

    def roles_of(self, value: ir.Value, tensor: ir.TensorProtocol) -> Roles:
        """Told once for all readers of a constant, of which there can be thousands."""
        if value not in self.roles:
            is_a_weight = is_weight(value, tensor)
            shared = is_a_weight and is_shared_by_accident(value, tensor)
            self.roles[value] = Roles(is_a_weight, shared, is_a_weight and not is_untrained(value, tensor))
        return self.roles[value]

    def store(self, value: ir.Value, tensor: ir.TensorProtocol, use: tuple[ir.Node, int] | None) -> str:
        name = str(value.name)
        if use is not None and name in self.stored:
            name = f"{name}@{label(use[0])}"
        base, count = name, 1
        while name in self.stored:
            count += 1
            name = f"{base}#{count}"
        self.stored[name] = Stored(name, value, tensor, use)
        return name

    def note_parameters(self, values: Iterable[Value | None]) -> None:
        """A stored tensor is a parameter once something computes with it: sizes and scales are not computed with."""
        for made in values:
            if made is not None and made.parameter is not None:
                self.parameters.setdefault(made.parameter, made)

    # -- nodes ---------------------------------------------------------------------------------

    def lower(self, node: ir.Node) -> None:
        if self.is_arithmetic(node):
            self.arithmetic.update(node.outputs)
            return
        inputs = [self.value(value, node, place) for place, value in enumerate(node.inputs)]
        numbers = [None if value is None else self.trace.numbers.get(value) for value in node.inputs]
        used = {
            place: value
            for place, value in enumerate(node.outputs)
            if value.name and (place == 0 or value.uses() or value in self.outputs_of_model)
        }
        outputs = {place: known for place, value in used.items() if (known := self.value(value)) is not None}
        where = Where(label(node))
        call = Call(node, version_of(self.model, node), inputs, outputs, numbers, where, self.trace)
        is_known = len(outputs) == len(used) and all(
            made is not None for made, value in zip(inputs, node.inputs, strict=True) if value is not None
        )
        for step in self.steps(call, is_known):
            made_here = tuple(call.outputs if step.outputs is None else step.outputs)
            op = Op(step.operator, node.op_type, tuple(step.inputs), made_here, where)
            op.source, op.places = call, step.places
            for made in op.outputs:
                made.producer = op
            self.note_parameters(op.inputs)
            self.ops.append(op)

    def steps(self, call: Call, is_known: bool) -> list[Lowered]:
        node = call.node
        if self.count_parts(node) > MOST_PARTS:
            self.parts.update(dict.fromkeys(node.outputs, 1))
            return [opaque(call, f"{node.op_type} puts together more than {MOST_PARTS:,} parts")]
        if node.op_type == "If" and not node.domain and (branch := taken_branch(node, self.trace)) is not None:
            return self.through_branch(call, branch)
        captured = [value for graph in subgraphs(node) for value in outer_values(graph)]
        if captured or subgraphs(node):
            call.inputs += [self.value(value) for value in captured]
            return [opaque(call, f"{node.op_type} runs a graph of its own")]
        if not is_known:
            problem = self.trace.problems.get(node, "")
            return [opaque(call, f"the shapes around {node.op_type} are not known" + (problem and f": {problem}"))]
        if not node.domain and call.version > NEWEST:
            return [opaque(call, f"operators of version {call.version}: the installed onnx knows them up to {NEWEST}")]
        found = ENTRIES.get((node.domain, node.op_type))
        if found is None:
            qualified = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            if qualified in RULES:
                return [custom(call, qualified)]
            return [opaque(call)]
        try:
            lowered = found(call)
        except (ValueError, IndexError, TypeError, KeyError) as error:
            return [opaque(call, f"{node.op_type} is used in a way that is not understood: {error}")]
        return lowered if isinstance(lowered, list) else [lowered]

    def count_parts(self, node: ir.Node) -> int:
        """Put together with itself again and again, a value of a small file has more parts than can be handled."""
        given = [value for value in node.inputs if value is not None]
        if is_one_of(node, frozenset(("Concat",))):
            found = sum(self.parts.get(value, 1) for value in given)
        else:
            shapes = {self.trace.shape(value) for value in node.outputs}
            found = max((self.parts.get(value, 1) for value in given if self.trace.shape(value) in shapes), default=1)
        self.parts.update(dict.fromkeys(node.outputs, found))
        return found

    def through_branch(self, call: Call, branch: ir.Graph) -> list[Lowered]:
        """What comes out of an If whose branch is known is what comes out of the branch, lowered already."""
        results = [self.value(value) for value in branch.outputs]
        return [
            Lowered(Route(straight(made)), [result], outputs=[made])
            for result, made in zip(results, call.outputs, strict=True)
            if result is not None
        ]

    def is_arithmetic(self, node: ir.Node) -> bool:
        """Numbers computed from shapes and constants alone: no tensor of the network."""
        if node.op_type == "Constant" and not node.domain:
            return True
        return all(self.is_number(value) for value in node.outputs if value.name)

    def measured(self, op: Op) -> list[Value]:
        """The tensors from whose sizes an operator's computed inputs are made."""
        return self.measured_by([value for value in op.source.node.inputs if value in self.arithmetic])

    def measured_by(self, computed: Sequence[ir.Value]) -> list[Value]:
        found: list[Value] = []
        ahead = list(computed)
        met = set(ahead)
        for value in ahead:
            node = value.producer()
            inputs = () if node is None else node.inputs
            if node is not None and node.op_type in ("Shape", "Size"):
                found += [self.values[each] for each in inputs if each in self.values]
                continue
            new = [each for each in inputs if each in self.arithmetic and each not in met]
            ahead += new
            met.update(new)
        return found

    def is_number(self, value: ir.Value) -> bool:
        """Known, and no tensor of the network: whole numbers, scalars, and what only indices and sizes are made of."""
        # What a number is made into decides; chains of such makings are as long as the model: no recursion.
        waiting = [value]
        while waiting:
            each = waiting[-1]
            made = [] if each in self.numbers or not self.is_open(each) else self.made_of(each)
            missing = [other for other in made if other not in self.numbers and other is not each]
            if missing:
                waiting += missing
                continue
            waiting.pop()
            if each not in self.numbers:
                self.numbers[each] = self.decided(each)
        return self.numbers[value]

    def is_open(self, value: ir.Value) -> bool:
        """Whether it is a number depends on what is made of it."""
        known = self.trace.types.get(value)
        return (
            value in self.trace.numbers and known is not None and prod(known.shape) > 1
            and known.dtype.is_floating_point()
        )  # fmt: skip

    def made_of(self, value: ir.Value) -> list[ir.Value]:
        return [
            made for node, place in value.uses() if place not in SCALES.get(node.op_type, ()) for made in node.outputs
        ]

    def decided(self, value: ir.Value) -> bool:
        known = self.trace.types.get(value)
        if value not in self.trace.numbers or known is None:
            return False
        if self.is_open(value):
            is_read = bool(value.uses()) and not value.is_graph_output()
            return is_read and all(self.numbers[made] for made in self.made_of(value))
        return prod(known.shape) <= 1 or not is_quantized(value)


def custom(call: Call, kind: str) -> Lowered:
    """An operator whose rule was registered under its own name."""
    given = {name: attribute.value for name, attribute in call.node.attributes.items()}
    return Lowered(Custom(kind, given), call.inputs)


def label(node: ir.Node) -> str:
    """How reports name a node."""
    return node.name or f"the {node.op_type} that gives {node.outputs[0].name}"


# Floating numbers that say how much larger a result is.
SCALES = {"Resize": (1, 2), "Upsample": (1,)}


def is_weight(value: ir.Value, tensor: ir.TensorProtocol) -> bool:
    """Floating tensors of more than one entry, and the integers that stand for them."""
    if tensor.size <= 1 or tensor.dtype == ir.DataType.STRING:
        return False
    if tensor.dtype.is_floating_point():
        uses = list(value.uses())
        return not uses or any(place not in SCALES.get(node.op_type, ()) for node, place in uses)
    return is_quantized(value)


def is_quantized(value: ir.Value) -> bool:
    """These integers stand for floating numbers."""
    return any(is_one_of(node, QUANTIZED) for node in readers(value))


def weights(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """Everything that a model stores and that could be cut, used or not."""
    found: dict[str, ir.TensorProtocol] = {}
    for graph in model.graphs():
        values = [*graph.initializers.values()]
        values += [value for node in graph if node.op_type == "Constant" and not node.domain for value in node.outputs]
        for value in values:
            tensor = constant(value)
            if tensor is not None and is_weight(value, tensor):
                found[str(value.name)] = tensor
    return found


def is_untrained(value: ir.Value, tensor: ir.TensorProtocol) -> bool:
    """Not trained: statistics, scales of quantization, masks, and tables that activations are multiplied by."""
    uses, nodes = list(value.uses()), readers(value)
    if uses and all(place in UNTRAINED.get((node.domain, node.op_type), ()) for node, place in uses):
        return True
    if nodes and all(is_one_of(node, frozenset(("Mul",))) for node in nodes):
        return sum(size > 1 for size in sizes(tensor)) > 1
    return bool(nodes) and all(is_one_of(node, POINTWISE) for node in nodes) and is_mask(tensor)


def is_shared_by_accident(value: ir.Value, tensor: ir.TensorProtocol) -> bool:
    """Exporters store equal tensors once: layers that share a bias or a table are not tied by that."""
    nodes = [node for node, _ in value.uses()]
    # The older exporter has each reader but the first read a shared tensor through an Identity of its own.
    if len(nodes) < 2 or any(is_one_of(node, MOVING - {"Identity"}) for node in nodes):
        return False
    return max(sizes(tensor)) == tensor.size or all(is_one_of(node, POINTWISE) for node in readers(value))


# Of what multiplies by stored integers: the places of those, of their scale and zero point, and the axis of these two.
INTEGERS = {"DequantizeLinear": (0, 1, 2, 1), "MatMulInteger": (1, None, 3, -1), "ConvInteger": (1, None, 3, 0)}


def quantization(stored: Stored) -> tuple[Numbers | None, Numbers | None]:
    """The scale and the zero point of stored integers, shaped to be multiplied with them and subtracted from them."""
    # Looking through all uses for each of them takes the square of their number.
    for node, place in stored.value.uses() if stored.use is None else (stored.use,):
        if node.domain or node.op_type not in INTEGERS or INTEGERS[node.op_type][0] != place:
            continue
        _, *places, axis = INTEGERS[node.op_type]
        found: list[Numbers | None] = []
        for at in places:
            value = node.inputs[at] if at is not None and at < len(node.inputs) else None
            tensor = None if value is None else constant(value)
            shape = [1] * len(sizes(stored.tensor))
            if tensor is not None and tensor.size > 1:
                shape[node.attributes.get_int("axis", axis) % len(shape)] = tensor.size
            # Scales in blocks have more axes than one: such weights stay whole.
            is_usable = tensor is not None and len(sizes(tensor)) < 2
            found.append(tensor.numpy().reshape(shape) if tensor is not None and is_usable else None)
        return found[0], found[1]
    return None, None


# They take parts of a stored tensor, or give it another shape.
MOVING = frozenset(("Slice", "Split", "Gather", "Identity", "Cast", "Unsqueeze", "Squeeze", "Reshape", "Expand"))
QUANTIZED = frozenset(
    ("DequantizeLinear", "QuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv")
)
POINTWISE = frozenset(("Add", "Sub", "Mul", "Div", "Max", "Min", "Where"))


def is_one_of(node: ir.Node, kinds: frozenset[str]) -> bool:
    return not node.domain and node.op_type in kinds


def readers(value: ir.Value) -> list[ir.Node]:
    """The nodes that compute with a tensor, whatever shape they read it in."""
    found: dict[ir.Node, None] = {}
    waiting, met = [value], {value}
    while waiting:
        for node, place in waiting.pop().uses():
            if place != 0 or not is_one_of(node, MOVING):
                found[node] = None
            elif node.outputs[0] not in met:
                met.add(node.outputs[0])
                waiting.append(node.outputs[0])
    return list(found)


def is_mask(tensor: ir.TensorProtocol) -> bool:
    """Zeros, and one number that a softmax makes nothing of."""
    array = tensor.numpy()
    least = array.min()
    return bool(least <= -100) and bool(np.all((array == 0) | (array == least)))
