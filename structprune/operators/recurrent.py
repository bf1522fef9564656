"""LSTM, GRU and plain recurrent layers: the hidden width is one axis."""

from __future__ import annotations

from dataclasses import dataclass, replace

from structprune.algebra.axis import ONE, Axis, Product, Sum, fresh
from structprune.graph.graph import Op
from structprune.graph.operator import Meeting, Operand, Operator, Resized, operator


@operator
@dataclass(frozen=True, slots=True)
class Recurrent(Operator):
    """h[t] = f(w x[t] + u h[t - 1] + b), each gate of the width of h

    operands: the initial states (so many), then for each layer and direction w, u, and, if any, both biases and a
    projection (so many together).
    """

    kinds = ("recurrent",)
    states: int
    gates: int
    per_layer: int
    directions: int = 1
    is_projected: bool = False
    is_batch_first: bool = False
    is_cell: bool = False

    def meet(self, op: Op, x: Operand, *operands: Operand) -> Meeting:
        initial, weights = operands[: self.states], operands[self.states :]
        # With a projection the state that goes round is narrower than the cell.
        hidden = weights[1].axes[1]
        cell = weights[self.per_layer - 1].axes[1] if self.is_projected else hidden
        gate = fresh(self.gates)
        meeting = Meeting([], [])
        if self.is_projected:
            meeting.frozen.append((cell, "torch tells a projection by its being narrower than the cell"))
        if self.gates > 1:
            meeting.frozen.append((gate, "the gates of a recurrent layer"))
        *around, entering = x.axes
        if not self.is_cell:
            # A step that is removed is no step of zeros: the state goes on through it.
            steps = around.pop(1 if self.is_batch_first and len(around) > 1 else 0)
            meeting.frozen.append((steps, f"{op.name} goes through it step by step"))
        # Gates of zeroed rows are constants, and the state stays where it began: at zero, if it began there.
        is_zero = all(state.zero[-1] for state in initial)
        layers = [weights[k : k + self.per_layer] for k in range(0, len(weights), self.per_layer)]
        multiplied: list[tuple[Axis, ...]] = []
        positions = x.axes[:-1]
        for index, (w, u, *biases) in enumerate(layers):
            if index % self.directions == 0 and index:
                entering = Sum((hidden,) * self.directions)
            meeting.equal += [(w.axes[1], entering), (u.axes[1], hidden)]
            if self.is_projected:
                *biases, projection = biases
                meeting.equal += [(projection.axes[0], hidden), (projection.axes[1], cell)]
                multiplied.append((*positions, *projection.axes))
            meeting.equal += [(each.axes[0], Product((gate, cell))) for each in (w, u, *biases)]
            multiplied += [(*positions, *w.axes), (*positions, *u.axes)]
        if not x.zero[-1] and not weights[0].zero[1]:
            meeting.frozen.append((x.axes[-1], f"{op.name} sums over it, and it is not zero there"))
        for place, state in enumerate(initial):
            meeting.equal.append((state.axes[-1], cell if place == 1 else hidden))
            meeting.equal += zip(state.axes[-2:-1], around, strict=False)
            meeting.frozen += [(axis, "the states of a recurrent layer") for axis in state.axes[:-2]]
        meeting.multiplied = multiplied
        leaving: Axis = Sum((hidden,) * self.directions) if self.directions > 1 else hidden
        for position, value in enumerate(op.outputs):
            if self.is_cell or (position == 0):
                width = (cell if position == 1 else hidden) if self.is_cell else leaving
                axes = (*x.axes[:-1], width)
            else:
                lead = [fresh(value.shape[0]), *around]
                meeting.frozen.append((lead[0], "the state of a recurrent layer"))
                axes = (*lead, cell if position == 2 else hidden)
            meeting.outputs.append(axes)
            meeting.zero.append((*(False for _ in axes[:-1]), is_zero))
        return meeting


@operator
@dataclass(frozen=True, slots=True)
class RecurrentStacked(Operator):
    """One layer whose weights hold its directions one upon another: w[d, g h, i], u[d, g h, h], b[d, 2 g h]

    others: the initial states [d, batch, h], then the peepholes [d, 3 h]; is_batch_first: as it says, states too.
    """

    kinds = ("recurrent_stacked",)
    hidden: int
    is_batch_first: bool = False
    has_lengths: bool = False

    def meet(
        self, op: Op, x: Operand, w: Operand, u: Operand, bias: Operand | None = None, *others: Operand | None
    ) -> Meeting:
        state, cell, peephole = (*others, None, None, None)[:3]
        hidden = u.axes[2]
        gates, sides = fresh(w.axes[1].size // hidden.size), fresh(2)
        meeting = Meeting([], [])
        meeting.equal = [(w.axes[2], x.axes[2]), (w.axes[1], Product((gates, hidden))), (u.axes[1], w.axes[1])]
        meeting.equal.append((w.axes[0], u.axes[0]))
        whole = [gates, sides, w.axes[0]]
        if bias is not None:
            meeting.equal += [(bias.axes[0], w.axes[0]), (bias.axes[1], Product((sides, gates, hidden)))]
        steps, batch = x.axes[1::-1] if self.is_batch_first else x.axes[:2]
        meeting.frozen.append((steps, f"{op.name} goes through it step by step"))
        if self.has_lengths:
            meeting.frozen.append((batch, f"{op.name} is told a length for each"))
        states = (batch, w.axes[0], hidden) if self.is_batch_first else (w.axes[0], batch, hidden)
        for each in (state, cell):
            if each is not None:
                meeting.equal += zip(each.axes, states, strict=True)
        if peephole is not None:
            kinds = fresh(3)
            whole.append(kinds)
            meeting.equal += [(peephole.axes[0], w.axes[0]), (peephole.axes[1], Product((kinds, hidden)))]
        meeting.frozen += [(axis, "the gates and directions of a recurrent layer") for axis in whole if axis is not ONE]
        if not x.zero[2] and not w.zero[2]:
            meeting.frozen.append((x.axes[2], f"{op.name} sums over it, and it is not zero there"))
        # Gates of zeroed rows are constants, and the state stays where it began: at zero, if it began there.
        is_zero = all(each is None or each.zero[2] for each in (state, cell))
        meeting.multiplied = [(steps, batch, *w.axes), (steps, batch, *u.axes)]
        for value in op.outputs:
            every = (batch, steps, w.axes[0], hidden) if self.is_batch_first else (steps, w.axes[0], batch, hidden)
            axes = every if len(value.shape) == 4 else states
            meeting.outputs.append(axes)
            meeting.zero.append((*(False for _ in axes[1:]), is_zero))
        return meeting

    def resized(self, op: Op, new: Resized) -> RecurrentStacked:
        u = op.inputs[2]
        assert u is not None
        return replace(self, hidden=new.shape(u)[2])
