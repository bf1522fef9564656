"""Weights of a file as the passes compute with them: a lazy mapping."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from structprune.frontends.onnx.read.lower import Stored, quantization
from structprune.frontends.onnx.record.file import give_back
from structprune.frontends.onnx.record.trace import Numbers

# Types that scores compute with as they are: no copy of a weight is made for them.
COMPUTED = (ir.DataType.DOUBLE, ir.DataType.FLOAT, ir.DataType.FLOAT16)
# Bytes of mapped files that scores read before they are given back.
MOST_MAPPED = 1 << 27


class Arrays(Mapping[str, Numbers]):
    """Weights as arrays that numpy computes with, each read when it is asked for; integers as what they stand for."""

    def __init__(self, stored: Mapping[str, Stored]) -> None:
        self.stored = stored
        self.count = 0

    def __getitem__(self, name: str) -> Numbers:
        tensor = self.stored[name].tensor
        self.count += tensor.nbytes
        if self.count > MOST_MAPPED:
            # All of them: those given back before may have been looked at again since.
            self.count = 0
            for each in self.stored.values():
                give_back(each.tensor)
        array: Numbers = tensor.numpy() if tensor.dtype in COMPUTED else tensor.numpy().astype(np.float32)
        scale, zero_point = quantization(self.stored[name])
        if zero_point is not None:
            array = array - zero_point.astype(np.float32)
        return array if scale is None else array * scale

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)
