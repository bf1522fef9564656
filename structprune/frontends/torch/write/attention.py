"""Torch's own attention module, holding heads and head widths that do not multiply to the model's width."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn import functional as F

from structprune.algebra.order import Indices
from structprune.frontends.torch.record.tree import modules_of
from structprune.passes.rewrite import Rewrite

Three = tuple[Tensor, Tensor, Tensor]


class ShrunkAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` with heads and head widths of its own: the same parameters, arguments and results.

    Queries meet keys in `head_dim`, values have `value_dim`, and scores are scaled for `scaled_dim`, the width
    that heads had before any was cut. The operators are those of torch's own module, in the same order:
    so the graph recorded of the original proves that this module computes the same. `fit` makes it
    out of a copy of torch's own.
    """

    _stock: type[nn.MultiheadAttention] = nn.MultiheadAttention
    value_dim: int
    scaled_dim: int

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention.forward`; a mask with an entry for each head has one for each that is left."""
        if isinstance(query, Proxy) and type(self) is ShrunkAttention:
            # Traced by torch.fx, it is a leaf as torch's own modules are.
            given = key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            path = query.tracer.path_of_module(self)
            return query.tracer.create_proxy("call_module", path, (query, key, value, *given), {})
        if query.is_nested or key.is_nested or value.is_nested:
            raise TypeError("attention that was shrunk takes no nested tensors: give padded ones and key_padding_mask")
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal only describes attn_mask: give the mask too")
        key_padding_mask, attn_mask = additive(key_padding_mask, query.dtype), additive(attn_mask, query.dtype)
        is_batched = query.dim() == 3
        if not is_batched:
            query, key, value = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif self.batch_first:
            query, key, value = transposed(query, key, value)
        is_causal = is_causal and key_padding_mask is None and not need_weights
        attn_mask = None if is_causal else attn_mask

        places, batch = query.shape[:2]
        heads = batch * self.num_heads
        q, k, v = self._projected(query, key, value)
        if attn_mask is not None:
            attn_mask = attn_mask.unsqueeze(0) if attn_mask.dim() == 2 else attn_mask
            scores = places, k.shape[0]
            if attn_mask.shape not in ((1, *scores), (heads, *scores)):
                raise RuntimeError(
                    f"attn_mask has shape {tuple(attn_mask.shape)}; it must have {tuple(scores)} "
                    f"or {(heads, *scores)}, for {self.num_heads} heads"
                )
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.repeat(1, batch, 1)])
            v = torch.cat([v, self.bias_v.repeat(1, batch, 1)])
            attn_mask, key_padding_mask = padded(attn_mask), padded(key_padding_mask)
        q = q.view(places, heads, self.head_dim).transpose(0, 1)
        k = k.view(k.shape[0], heads, self.head_dim).transpose(0, 1)
        v = v.view(v.shape[0], heads, self.value_dim).transpose(0, 1)
        if self.add_zero_attn:
            k = torch.cat([k, torch.zeros((heads, 1, self.head_dim), dtype=k.dtype, device=k.device)], dim=1)
            v = torch.cat([v, torch.zeros((heads, 1, self.value_dim), dtype=v.dtype, device=v.device)], dim=1)
            attn_mask, key_padding_mask = padded(attn_mask), padded(key_padding_mask)
        if key_padding_mask is not None:
            padding = key_padding_mask.view(batch, 1, 1, k.shape[1]).expand(-1, self.num_heads, -1, -1)
            padding = padding.reshape(heads, 1, k.shape[1])
            attn_mask = padding if attn_mask is None else attn_mask + padding

        weights = None
        if need_weights:
            weights = self._weights(q, k, attn_mask)
            mixed = torch.bmm(weights, v).transpose(0, 1)
        else:
            mixed = self._mixed(q, k, v, batch, attn_mask, is_causal).permute(2, 0, 1, 3)
        del q, k, v  # before more is allocated
        mixed = mixed.reshape(places * batch, self.num_heads * self.value_dim)
        result = F.linear(mixed, self.out_proj.weight, self.out_proj.bias)
        result = result.view(places, batch, result.shape[1])
        if weights is not None:
            weights = weights.view(batch, self.num_heads, places, weights.shape[-1])
            weights = weights.mean(dim=1) if average_attn_weights else weights
        if not is_batched:
            return result.squeeze(1), None if weights is None else weights.squeeze(0)
        return result.transpose(1, 0) if self.batch_first else result, weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> Three:
        """Queries, keys and values, by one product where they come from one tensor."""
        weight, bias = self.in_proj_weight, self.in_proj_bias
        width, carried = self.num_heads * self.head_dim, self.num_heads * self.value_dim
        if weight is not None and key is value and width == carried:
            if query is key:
                q, k, v = stacked(F.linear(query, weight, bias), 3)
                return q, k, v
            to_query, to_others = torch.split(weight, [width, 2 * width])
            biases = divided(bias, [width, 2 * width])
            q = F.linear(query, to_query, biases[0])
            k, v = stacked(F.linear(key, to_others, biases[1]), 2)
            return q, k, v
        sizes = [width, width, carried]
        parts = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        q, k, v = map(
            F.linear,
            (query, key, value),
            parts if weight is None else torch.split(weight, sizes),
            divided(bias, sizes),
        )
        return q, k, v

    def _weights(self, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
        q, k = q * math.sqrt(1.0 / self.scaled_dim), k.transpose(-2, -1)
        weights = F.softmax(torch.bmm(q, k) if mask is None else torch.baddbmm(mask, q, k), dim=-1)
        return F.dropout(weights, self.dropout) if self.training and self.dropout > 0 else weights

    def _mixed(self, q: Tensor, k: Tensor, v: Tensor, batch: int, mask: Tensor | None, is_causal: bool) -> Tensor:
        if mask is not None:
            is_shared = mask.shape[0] == 1
            mask = mask.unsqueeze(0) if is_shared else mask.view(batch, self.num_heads, -1, k.shape[1])
        q, k, v = (x.view(batch, self.num_heads, *x.shape[1:]) for x in (q, k, v))
        dropout = self.dropout if self.training else 0.0
        scale = None if self.scaled_dim == self.head_dim else 1 / math.sqrt(self.scaled_dim)
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal, scale=scale)

    def _keep_off_fused_kernels(self) -> None:
        """Layers around it ask for this before they hand its weights to a kernel that knows one width only."""
        self._qkv_same_embed_dim = False

    def _reset_parameters(self) -> None:
        self._qkv_same_embed_dim = self.in_proj_weight is not None
        super()._reset_parameters()
        self._keep_off_fused_kernels()

    def extra_repr(self) -> str:
        values = "" if self.value_dim == self.head_dim else f", value_dim={self.value_dim}"
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, head_dim={self.head_dim}{values}"

    def __reduce__(self) -> Any:
        """The classes that `shrunk` makes have no name under which pickle could find them."""
        return blank, (self._stock,), self.__dict__.copy()


_KINDS: dict[type, type[ShrunkAttention]] = {nn.MultiheadAttention: ShrunkAttention}


def shrunk(stock: type[nn.MultiheadAttention]) -> type[ShrunkAttention]:
    """The class that takes another's place; a subclass stays one, and its own methods come first."""
    if issubclass(stock, ShrunkAttention):
        return stock
    if stock not in _KINDS:
        named = {"_stock": stock, "__module__": stock.__module__}
        _KINDS[stock] = type(stock.__name__, (stock, ShrunkAttention), named)
    return _KINDS[stock]


def blank(stock: type[nn.MultiheadAttention]) -> ShrunkAttention:
    kind = shrunk(stock)
    return kind.__new__(kind)


def additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask as what is added to the scores: True stands for a place that is not looked at."""
    if mask is None or mask.is_floating_point():
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))


def padded(mask: Tensor | None) -> Tensor | None:
    """The mask with one more place to look at."""
    return None if mask is None else F.pad(mask, (0, 1))


def transposed(query: Tensor, key: Tensor, value: Tensor) -> Three:
    """Places before the batch; one tensor for keys and values stays one."""
    if key is not value:
        return query.transpose(1, 0), key.transpose(1, 0), value.transpose(1, 0)
    q = query.transpose(1, 0)
    k = q if query is key else key.transpose(1, 0)
    return q, k, k


def divided(bias: Tensor | None, sizes: list[int]) -> Sequence[Tensor | None]:
    return [None] * len(sizes) if bias is None else torch.split(bias, sizes)


def stacked(x: Tensor, count: int) -> list[Tensor]:
    """The equal parts of the last axis, each in one piece of memory."""
    x = torch.unflatten(x, -1, (count, x.shape[-1] // count))
    x = x.unsqueeze(0).transpose(0, -2).squeeze(-2).contiguous()
    return [x[k] for k in range(count)]


# -- in the place of torch's own -------------------------------------------------------------------


def fit_attention(small: nn.Module, model: nn.Module, rewrite: Rewrite, aliases: Mapping[str, str]) -> None:
    """Tell the attention modules of a small copy what is left of them; one that cannot hold it changes its class."""
    originals = {name: module for module, name in modules_of(model).items()}
    modules = modules_of(small)
    for module, name in modules.items():
        if isinstance(module, nn.MultiheadAttention):
            fit(module, originals[name], f"{name}." if name else "", rewrite, aliases)
    for module in modules:
        update_container(module)


def update_container(module: nn.Module) -> None:
    """What torch's containers note of the attention inside them when they are built."""
    match module:
        case nn.TransformerEncoder():
            takes_nested = not any(isinstance(each, ShrunkAttention) for each in module.modules())
            module.use_nested_tensor = getattr(module, "use_nested_tensor", False) and takes_nested
        case nn.Transformer():
            inside = [each for each in module.modules() if isinstance(each, nn.MultiheadAttention)]
            widths, heads = {each.embed_dim for each in inside}, {each.num_heads for each in inside}
            module.d_model = widths.pop() if len(widths) == 1 else module.d_model
            module.nhead = heads.pop() if len(heads) == 1 else module.nhead


def fit(module: nn.MultiheadAttention, was: Any, prefix: str, rewrite: Rewrite, aliases: Mapping[str, str]) -> None:
    def left(weight: str, axis: int, width: int) -> tuple[int, int] | None:
        value = rewrite.solution.graph.parameters.get(aliases.get(prefix + weight, ""))
        return None if value is None else heads_left(rewrite.indices(value, axis), was.num_heads, width)

    is_packed = f"{prefix}in_proj_weight" in aliases
    weights = ["in_proj_weight"] * 3 if is_packed else ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
    queries = left(weights[0], 0, was.head_dim)
    values = left("out_proj.weight", 1, getattr(was, "value_dim", was.head_dim))
    are_plain = all(prefix + weight in aliases for weight in weights)
    if queries is None or values is None or queries[0] != values[0] or not are_plain:
        # Its weights are computed, or its code is not torch's: it is mended like any other module.
        return
    module.embed_dim, module.kdim, module.vdim = (module.get_parameter(weight).shape[1] for weight in weights)
    module.num_heads, module.head_dim = queries
    scaled_dim = getattr(was, "scaled_dim", was.head_dim)
    if not module.head_dim == values[1] == scaled_dim or module.num_heads * module.head_dim != module.embed_dim:
        module.__class__ = shrunk(type(module))
    if isinstance(module, ShrunkAttention):
        module.value_dim, module.scaled_dim = values[1], scaled_dim
        module._keep_off_fused_kernels()


def heads_left(kept: Indices | None, heads: int, width: int) -> tuple[int, int] | None:
    """How many heads stay, and the width they keep, on an axis that begins with `(heads width)`."""
    if kept is None:
        return heads, width
    counts = np.bincount(kept[kept < heads * width] // width)
    counts = counts[counts > 0]
    return (len(counts), int(counts[0])) if len(set(counts.tolist())) == 1 else None
