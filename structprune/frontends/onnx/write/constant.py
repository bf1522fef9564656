"""What the constants of an ONNX model are, and what its pointwise operators make of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx import helper
from onnx.reference import ReferenceEvaluator

from structprune.frontends.onnx.read.lower import Call, Lowering
from structprune.frontends.onnx.record.trace import Numbers, constant, node_proto
from structprune.graph.constant import Array
from structprune.graph.graph import Op, Value


class Constants:
    """Answers for one model; `fixed` tells which computed numbers are the same for inputs of other sizes."""

    def __init__(
        self,
        lowering: Lowering,
        arrays: Callable[[Iterable[str]], Mapping[str, Any]],
        fixed: Callable[[ir.Value], Numbers],
    ) -> None:
        self.trace = lowering.trace
        self.arrays = arrays
        self.fixed = fixed
        self.origins = {made: value for value, made in lowering.values.items()}

    def numbers(self, value: Value) -> Array | None:
        origin = self.origins.get(value)
        found = None if origin is None else self.trace.numbers.get(origin)
        if origin is None or found is None or (constant(origin) is None and not self.fixed(origin).all()):
            return None
        return exact(found)

    def computed(self, op: Op, operands: Sequence[Array]) -> Array | None:
        call: Call = op.source
        given = dict(zip(op.inputs, operands, strict=True))
        if list(op.inputs) != [value for value in call.inputs if value is not None] or list(op.outputs) != call.outputs:
            return None  # one step of several that a node stands for
        node, operands_at = node_proto(call.node), zip(call.inputs, call.node.inputs, strict=True)
        made, infos = {}, []
        for value, origin in operands_at:
            if value is not None and origin is not None:
                dtype, name = self.trace.types[origin].dtype, str(origin.name)
                made[name] = given[value].astype(dtype.numpy())
                infos.append(helper.make_tensor_value_info(name, int(dtype), made[name].shape))
        graph = helper.make_graph([node], "", infos, [helper.make_empty_tensor_value_info(node.output[0])])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid(node.domain, call.version)])
        try:
            with np.errstate(all="ignore"):  # the places that are not known hold zeros
                (found,) = ReferenceEvaluator(model).run(None, made)
        except Exception:
            # The reference raises what it likes at operators or types that it does not know: nothing is known of them.
            return None
        return exact(np.asarray(found))


def exact(numbers: Numbers) -> Array | None:
    """In double precision; None where that cannot hold them."""
    double = numbers.astype(np.float64)
    is_held = numbers.dtype.kind not in "iu" or np.array_equal(double.astype(numbers.dtype), numbers)
    return double if is_held else None
