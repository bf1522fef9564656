"""The slower way to record, through torch.export: for a torch that lacks the private names of the quick way."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from structprune.errors import CaptureError
from structprune.frontends.torch.read.lower import has_rule
from structprune.frontends.torch.record import private
from structprune.frontends.torch.record.record import Call, Capture, Run, Stopped, tensors_in
from structprune.frontends.torch.record.result import form, look_into
from structprune.frontends.torch.record.surroundings import NOT_THE_USERS, positional_names, untouched
from structprune.frontends.torch.record.tree import modules_of
from structprune.graph.graph import Value, Where

FRAME = re.compile(r'File "(.+)", line (\d+)')
# What export writes down beside the operators of the model.
SILENT = ("lift_fresh", "lift_fresh_copy", "detach_", "_assert_tensor_metadata")


def record_by_export(model: nn.Module, run: Run) -> Capture:
    """One run of the model on tensors without data, as torch.export sees it."""
    fast = torch.backends.mha.get_fastpath_enabled()
    with private.LOCK, untouched(model) as copied, torch.enable_grad():
        for module in modules_of(copied):
            vars(module)["training"] = run.training
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            program = torch.export.export(copied, run.inputs[0], run.inputs[1] or None, strict=False)
            program = taken_apart(program)
        except Exception as error:
            raise Stopped([], [], {}, error, "") from error
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
        return Reader(copied, run, program).capture()


def taken_apart(program: Any) -> Any:
    """Composite operators without a rule of their own become what they consist of."""
    whole = {
        node.target
        for node in program.graph.nodes
        if node.op == "call_function" and isinstance(node.target, private.OpOverload)
        if not has_rule(node.target) and private.is_composite(node.target)
    }
    if not whole:
        return program
    table = torch.export.default_decompositions()
    return program.run_decompositions({each: table[each] for each in whole if each in table})


class Reader:
    """Reads an exported program as a recording."""

    def __init__(self, model: nn.Module, run: Run, program: Any) -> None:
        self.model = model
        self.inputs = run.inputs
        self.program = program
        self.training = run.training
        self.values: dict[fx.Node, Any] = {}
        self.calls: list[Call] = []
        self.parameters: dict[str, Value] = dict(run.known.parameters) if run.known else {}
        self.constants: dict[Value, Tensor] = {}
        self.dtypes: dict[Value, torch.dtype] = dict(run.known.dtypes) if run.known else {}
        self.strides: dict[Value, tuple[int, ...]] = {}
        self.aliases: dict[str, str] = {}
        self.trained = {name for name, _ in model.named_parameters()}
        first: dict[int, str] = {}
        for found in (model.named_parameters, model.named_buffers):
            for name, tensor in found(remove_duplicate=False):
                self.aliases[name] = first.setdefault(id(tensor), name)

    def capture(self) -> Capture:
        signature = self.program.graph_signature
        stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        lifted = signature.inputs_to_lifted_tensor_constants
        entering: list[Value] = []
        outputs: Any = ()
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                if node.name in stored:
                    self.values[node] = self.stored(self.aliases[stored[node.name]], node)
                elif node.name in lifted:
                    value = self.values[node] = self.value(node.meta["val"], f"constant_{len(self.constants)}")
                    self.constants[value] = self.program.constants[lifted[node.name]]
                elif isinstance(node.meta.get("val"), Tensor):
                    value = self.values[node] = self.value(node.meta["val"], f"input_{len(entering)}")
                    entering.append(value)
            elif node.op == "call_function":
                self.call(node)
            elif node.op == "output":
                outputs = node.args[0]
        return self.captured(entering, outputs)

    def captured(self, entering: list[Value], outputs: Any) -> Capture:
        # Tensors that stand for the values: they take the form of the result.
        marks: dict[int, tuple[Tensor, Value]] = {}

        def marked(each: Any) -> Any:
            if not isinstance(each, fx.Node):
                return each
            mark = torch.empty(0)
            marks[id(mark)] = mark, self.values[each]
            return mark

        mutated = len(self.program.graph_signature.buffers_to_mutate)
        result = pytree.tree_unflatten([marked(each) for each in outputs[mutated:]], self.program.call_spec.out_spec)

        def value(tensor: Tensor) -> Value:
            return marks[id(tensor)][1]

        given = iter(entering)
        names = {id(tensor): next(given) for tensor in tensors_in(self.inputs)}
        args, kwargs = (form(each, lambda tensor: names[id(tensor)]) for each in self.inputs)
        inside = look_into(result)
        found = list(map(value, inside.tensors))
        if not found:
            raise CaptureError(f"{type(self.model).__name__}'s forward gives back no tensor")
        return Capture(
            calls=self.calls,
            inputs=entering,
            outputs=found,
            parameters=self.parameters,
            aliases=self.aliases,
            constants=self.constants,
            dtypes=self.dtypes,
            result=form(result, value),
            is_real=False,
            result_type=type(result) if isinstance(result, dict) and type(result) is not dict else None,
            training=self.training,
            arguments=(args, kwargs),
            argument_names=positional_names(self.model),
            said=inside.said,
            strides=self.strides,
            module_types={name: type(module) for name, module in self.model.named_modules()},
        )

    def value(self, tensor: Tensor, name: str) -> Value:
        made = Value(name, tuple(map(int, tensor.shape)), is_mask=tensor.dtype == torch.bool)
        self.dtypes[made] = tensor.dtype
        self.strides[made] = tuple(map(int, tensor.stride()))
        return made

    def stored(self, name: str, node: fx.Node) -> Value | None:
        if not node.users:
            return None
        if name not in self.parameters:
            made = self.parameters[name] = self.value(node.meta["val"], name)
            made.parameter, made.is_trained = name, name in self.trained
        return self.parameters[name]

    def call(self, node: fx.Node) -> None:
        if node.target is operator.getitem:
            source, place = node.args
            self.values[node] = self.values[source][place]  # type: ignore[index]
            return
        target: Any = node.target
        if not isinstance(target, private.OpOverload):
            raise CaptureError(f"torch.export writes {target} down, which is not supported")
        if target._opname in SILENT:
            self.values[node] = self.read(node.args[0]) if node.args else None
            return
        call = Call(target, self.read(node.args), dict(self.read(node.kwargs)), [], where_of(node.meta))
        self.calls.append(call)
        made = node.meta.get("val")
        parts = list(made) if isinstance(made, list | tuple) else [made]
        for index, part in enumerate(parts):
            if isinstance(part, Tensor):
                call.outputs.append(self.value(part, f"{target._opname}_{len(self.calls)}_{index}"))
        is_list = isinstance(made, list | tuple)
        self.values[node] = tuple(call.outputs) if is_list else next(iter(call.outputs), None)

    def read(self, structure: Any) -> Any:
        if isinstance(structure, fx.Node):
            return self.values[structure]
        if isinstance(structure, Mapping):
            return {key: self.read(each) for key, each in structure.items()}
        if isinstance(structure, list | tuple):
            items = map(self.read, structure)
            return list(items) if isinstance(structure, list) else tuple(items)
        return structure


def where_of(meta: Mapping[str, Any]) -> Where:
    """The innermost line of the user's code, and the module."""
    lines = [found for found in FRAME.findall(meta.get("stack_trace") or "") if not found[0].startswith(NOT_THE_USERS)]
    stack = list((meta.get("nn_module_stack") or {}).values())
    return Where(":".join(lines[-1]) if lines else "", str(stack[-1][0]) if stack else "")
