"""LSTM, GRU and plain recurrent layers: the hidden width is one axis."""

from structprune.algebra.axis import ONE, Axis, Product, Sum, fresh
from structprune.graph.graph import Op
from structprune.graph.operator import Meeting, Operand, rule


@rule("recurrent")
def recurrent(op: Op, x: Operand, *operands: Operand) -> Meeting:
    """h[t] = f(w x[t] + u h[t - 1] + b), each gate of the width of h

    operands: the initial states, then for each layer and direction w, u, and, if any, both biases.
    """
    states = int(str(op.attributes["states"]))
    gates = int(str(op.attributes["gates"]))
    directions = int(str(op.attributes["directions"]))
    per_layer = int(str(op.attributes["per_layer"]))
    initial, weights = operands[:states], operands[states:]
    is_projected = bool(op.attributes.get("is_projected", False))
    # With a projection the state that goes round is narrower than the cell.
    hidden = weights[1].axes[1]
    cell = weights[per_layer - 1].axes[1] if is_projected else hidden
    gate = fresh(gates)
    meeting = Meeting([], [])
    if is_projected:
        meeting.frozen.append((cell, "torch tells a projection by its being narrower than the cell"))
    if gates > 1:
        meeting.frozen.append((gate, "the gates of a recurrent layer"))
    is_cell = bool(op.attributes.get("is_cell", False))
    *around, entering = x.axes
    if not is_cell:
        # A step that is removed is no step of zeros: the state goes on through it.
        steps = around.pop(1 if op.attributes.get("is_batch_first") and len(around) > 1 else 0)
        meeting.frozen.append((steps, f"{op.name} goes through it step by step"))
    # Gates of zeroed rows are constants, and the state stays where it began: at zero, if it began there.
    is_zero = all(state.zero[-1] for state in initial)
    layers = [weights[k : k + per_layer] for k in range(0, len(weights), per_layer)]
    multiplied: list[tuple[Axis, ...]] = []
    positions = x.axes[:-1]
    for index, (w, u, *biases) in enumerate(layers):
        if index % directions == 0 and index:
            entering = Sum((hidden,) * directions)
        meeting.equal += [(w.axes[1], entering), (u.axes[1], hidden)]
        if is_projected:
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
    leaving: Axis = Sum((hidden,) * directions) if directions > 1 else hidden
    for position, value in enumerate(op.outputs):
        if is_cell or (position == 0):
            width = (cell if position == 1 else hidden) if is_cell else leaving
            axes = (*x.axes[:-1], width)
        else:
            lead = [fresh(value.shape[0]), *around]
            meeting.frozen.append((lead[0], "the state of a recurrent layer"))
            axes = (*lead, cell if position == 2 else hidden)
        meeting.outputs.append(axes)
        meeting.zero.append((*(False for _ in axes[:-1]), is_zero))
    return meeting


@rule("recurrent_stacked")
def recurrent_stacked(
    op: Op, x: Operand, w: Operand, u: Operand, bias: Operand | None = None, *others: Operand | None
) -> Meeting:
    """One layer whose weights hold its directions one upon another: w[d, g h, i], u[d, g h, h], b[d, 2 g h]

    others: the initial states [d, batch, h], then the peepholes [d, 3 h]; is_batch_first: as it says, states too.
    """
    state, cell, peephole = (*others, None, None, None)[:3]
    hidden = u.axes[2]
    gates, sides = fresh(w.axes[1].size // hidden.size), fresh(2)
    meeting = Meeting([], [])
    meeting.equal = [(w.axes[2], x.axes[2]), (w.axes[1], Product((gates, hidden))), (u.axes[1], w.axes[1])]
    meeting.equal.append((w.axes[0], u.axes[0]))
    whole = [gates, sides, w.axes[0]]
    if bias is not None:
        meeting.equal += [(bias.axes[0], w.axes[0]), (bias.axes[1], Product((sides, gates, hidden)))]
    is_batch_first = bool(op.attributes.get("is_batch_first", False))
    steps, batch = x.axes[1::-1] if is_batch_first else x.axes[:2]
    meeting.frozen.append((steps, f"{op.name} goes through it step by step"))
    if op.attributes.get("has_lengths"):
        meeting.frozen.append((batch, f"{op.name} is told a length for each"))
    states = (batch, w.axes[0], hidden) if is_batch_first else (w.axes[0], batch, hidden)
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
        every = (batch, steps, w.axes[0], hidden) if is_batch_first else (steps, w.axes[0], batch, hidden)
        axes = every if len(value.shape) == 4 else states
        meeting.outputs.append(axes)
        meeting.zero.append((*(False for _ in axes[1:]), is_zero))
    return meeting
