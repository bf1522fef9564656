"""Normalisations. Where statistics are taken over a removable axis, removing is not zeroing."""

from structprune.algebra.axis import Product, fresh
from structprune.graph.graph import Op
from structprune.graph.operator import Meeting, Operand, rule


def are_zero(*parameters: Operand | None) -> bool:
    """Scale and shift, given or not, are zero where an index of their axis is removed."""
    return all(each is None or (bool(each.zero) and all(each.zero)) for each in parameters)


def per_channel(x: Operand, *parameters: Operand | None) -> Meeting:
    """Parameters of one axis, met by the second axis of x."""
    meeting = Meeting([x.axes], [])
    meeting.equal = [(x.axes[1], each.axes[0]) for each in parameters if each is not None]
    return meeting


@rule("batch_norm")
def batch_norm(
    op: Op,
    x: Operand,
    weight: Operand | None = None,
    bias: Operand | None = None,
    mean: Operand | None = None,
    variance: Operand | None = None,
) -> Meeting:
    """y[b, c] = (x[b, c] - mean[c]) / deviation[c] * w[c] + bias[c]"""
    meeting = per_channel(x, weight, bias, mean, variance)
    if op.attributes.get("by_batch"):
        meeting.statistics = [x.axes[0], *x.axes[2:]]
    # Without a scale the channel is its own mean, shifted: not zero.
    is_zero = weight is not None and are_zero(weight, bias)
    meeting.zero = [tuple(axis == 1 and is_zero for axis in range(len(x.axes)))]
    return meeting


@rule("instance_norm")
def instance_norm(
    op: Op,
    x: Operand,
    weight: Operand | None = None,
    bias: Operand | None = None,
    mean: Operand | None = None,
    variance: Operand | None = None,
) -> Meeting:
    """Each channel of each sample by its own statistics over the positions."""
    meeting = batch_norm(op, x, weight, bias, mean, variance)
    meeting.statistics = list(x.axes[2:])
    return meeting


@rule("layer_norm")
def layer_norm(op: Op, x: Operand, weight: Operand | None = None, bias: Operand | None = None) -> Meeting:
    """y[..., c] = (x[..., c] - mean over c) / deviation over c * w[c] + bias[c]"""
    rank = int(str(op.attributes["rank"]))
    leading = len(x.axes) - rank
    meeting = Meeting([x.axes], [])
    for parameter in (weight, bias):
        if parameter is not None:
            meeting.equal.extend(zip(x.axes[leading:], parameter.axes, strict=True))
    meeting.statistics = list(x.axes[leading:])
    centred = bool(op.attributes.get("centred", True))
    inner = weight is not None and are_zero(weight, bias)
    meeting.zero = [
        (
            *(zero and bias is None for zero in x.zero[:leading]),
            *(inner or (zero and not centred and bias is None) for zero in x.zero[leading:]),
        )
    ]
    return meeting


@rule("group_norm")
def group_norm(op: Op, x: Operand, weight: Operand | None = None, bias: Operand | None = None) -> Meeting:
    """y[b, g c] = (x[b, g c] - mean over c) / deviation over c * w[g c] + bias[g c]"""
    groups = int(str(op.attributes["groups"]))
    outer, inner = fresh(groups), fresh(x.axes[1].size // groups)
    meeting = Meeting([x.axes], [], [(x.axes[1], Product((outer, inner)))])
    for parameter in (weight, bias):
        if parameter is not None:
            # Some have one entry for each group.
            is_by_group = parameter.shape[0] == groups
            meeting.equal.append((outer if is_by_group else x.axes[1], parameter.axes[0]))
    meeting.statistics = [inner, *x.axes[2:]]
    is_zero = weight is not None and are_zero(weight, bias)
    meeting.zero = [tuple(axis == 1 and is_zero for axis in range(len(x.axes)))]
    return meeting


@rule("weight_norm")
def weight_norm(op: Op, v: Operand, g: Operand) -> Meeting:
    """w[o, ...] = g[o] v[o, ...] / norm of v[o], and the norm itself"""
    dim = int(str(op.attributes["dim"]))
    of_norm = tuple(axis == dim and v.zero[dim] for axis in range(len(g.axes)))
    meeting = Meeting([v.axes, g.axes], [v.zero, of_norm], [(v.axes[dim], g.axes[dim])])
    # A row of zeros has no direction: 0 / 0 stands where nothing is left.
    meeting.singular = [v.axes[dim]]
    return meeting
