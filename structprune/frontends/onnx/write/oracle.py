"""Law 2 as a computation in onnxruntime: the original graph with the removed slices zeroed.

Operators whose statistics change with a removed axis run, in the oracle's copy of the graph alone, on the kept
entries; their results are spread over zeros again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime

from structprune.algebra.order import Indices
from structprune.errors import CaptureError
from structprune.frontends.onnx.read.lower import Call, Stored, quantization
from structprune.frontends.onnx.record.external import hold_external, slots
from structprune.frontends.onnx.record.trace import Numbers
from structprune.frontends.onnx.write.mend import add_initializer, free_name
from structprune.frontends.onnx.write.small import Shrinker, edited, set_constant
from structprune.graph.edit import Changes
from structprune.graph.graph import Op, Value

Feeds = Mapping[str, Numbers]
# What goes wrong is raised; onnxruntime need not print it too.
ONLY_FATAL = 4
# Seconds after which the run of a model with loops is stopped.
LONGEST_OF_LOOPS = 20.0


def session(model: ir.Model, is_plain: bool = False) -> onnxruntime.InferenceSession:
    """A session; `is_plain` leaves the graph as it is."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ONLY_FATAL
    if is_plain:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    model = model.clone()
    hold_external(model)
    if sum(slot.tensor.nbytes for slot in slots(model)) < 1 << 30:
        return onnxruntime.InferenceSession(
            ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        ir.save(model, path, external_data="model.data")
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(model: ir.Model, feeds: Feeds, is_plain: bool = False) -> list[Any]:
    try:
        return finished(session(model, is_plain), feeds, LONGEST_OF_LOOPS if has_loops(model) else None)
    except TimeoutError as error:
        raise CaptureError(f"onnxruntime does not finish the model: {error}") from error
    except Exception as error:
        raise CaptureError(f"onnxruntime does not run the model: {error}") from error


def has_loops(model: ir.Model) -> bool:
    """Nothing but the numbers in a Loop says how often it goes round; all else ends."""
    graphs = (model.graph, *(function.graph for function in model.functions.values()))
    return any(node.op_type == "Loop" and not node.domain for graph in graphs for node in graph.all_nodes())


def finished(session: onnxruntime.InferenceSession, feeds: Feeds, seconds: float | None) -> list[Any]:
    """What a run gives. It is stopped when it takes too long, and when the program is interrupted."""
    options = onnxruntime.RunOptions()
    options.log_severity_level = ONLY_FATAL
    pool = ThreadPoolExecutor(1)
    going = pool.submit(session.run, None, dict(feeds), options)
    try:
        return list(going.result(seconds))
    except FutureTimeout as error:
        raise TimeoutError(f"one of its loops goes on for more than {seconds:g} seconds") from error
    finally:
        options.terminate = True
        pool.shutdown()


def run_inside(model: ir.Model, values: Sequence[ir.Value], feeds: Feeds) -> list[Any]:
    """What a run gives for values inside a graph."""
    copied = model.clone()
    by_name = {value.name: value for node in copied.graph for value in node.outputs}
    copied.graph.outputs.clear()
    copied.graph.outputs.extend(by_name[value.name] for value in values)
    return run(copied, feeds)


class Zeroed(Shrinker):
    """The original with removed slices zeroed and changed operators taken over what is kept."""

    def build(self, zeros: Changes) -> ir.Model:
        solution = self.rewrite.solution
        for name, edits in zeros.items():
            stored = self.lowering.stored[name]
            # Of quantized weights, the integers that stand for zero.
            self.replace(stored, edited(stored.tensor, edits, quantization(stored)[1]))
        changed = {
            id(op): op
            for op, axis in (*solution.statistics, *solution.singular)
            if any(leaf in self.rewrite.kept for leaf in solution.system.leaves(axis))
        }
        for op in changed.values():
            self.over_kept(op)
        return self.model

    def replace(self, stored: Stored, tensor: ir.TensorProtocol) -> None:
        if stored.use is None:
            set_constant(self.values[stored.value], tensor)
        else:
            node, place = stored.use
            self.nodes[node].replace_input_with(place, add_initializer(self.model, stored.name, tensor))

    def over_kept(self, op: Op) -> None:
        call: Call = op.source
        node = self.nodes[call.node]
        graph = node.graph
        assert graph is not None
        for place, made in enumerate(call.inputs):
            if made is not None and made in self.rewrite.solution.axes:
                value = node.inputs[place]
                for axis in range(len(made.shape)):
                    kept = self.rewrite.indices(made, axis)
                    if kept is not None and value is not None:
                        value = self.emit(node, "Gather", [value, self.indices(kept)], axis=axis)
                node.replace_input_with(place, value)
        for name, wanted in self.rewrite.literals(op).items():
            if isinstance(name, str):
                self.set_attribute(node, name, wanted)
        for made in call.outputs:
            self.spread(node, made)

    def spread(self, node: ir.Node, made: Value) -> None:
        """Put the entries of a small result in their places, zeros elsewhere."""
        whole = next((value for value in node.outputs if value.name == made.name), None)
        if whole is None:
            return
        uses, here = list(whole.uses()), whole
        last = node
        for axis, size in enumerate(made.shape):
            kept = self.rewrite.indices(made, axis)
            if kept is None:
                continue
            # One more entry, of zeros, stands for all that is removed.
            pads = np.zeros((2, len(made.shape)), dtype=np.int64)
            pads[1, axis] = 1
            place = np.full(size, len(kept), dtype=np.int64)
            place[kept] = np.arange(len(kept))
            padded = self.emit(last, "Pad", [here, self.indices(pads.reshape(-1))], after=True)
            last = padded.producer() or last
            here = self.emit(last, "Gather", [padded, self.indices(place)], after=True, axis=axis)
            last = here.producer() or last
        for use, place_of_use in uses:
            if here is not whole:
                use.replace_input_with(place_of_use, here)
        if whole in self.model.graph.outputs and here is not whole:
            self.model.graph.outputs[list(self.model.graph.outputs).index(whole)] = here

    def indices(self, numbers: Indices) -> ir.Value:
        return add_initializer(self.model, "oracle_indices", ir.tensor(np.asarray(numbers, dtype=np.int64)))

    def emit(
        self, near: ir.Node, kind: str, inputs: Sequence[ir.Value], after: bool = False, **attributes: Any
    ) -> ir.Value:
        made = ir.node(kind, inputs, attributes)
        name = free_name(self.model, "oracle")
        made.name, made.outputs[0].name = name, name
        assert near.graph is not None
        (near.graph.insert_after if after else near.graph.insert_before)(near, made)
        return made.outputs[0]
