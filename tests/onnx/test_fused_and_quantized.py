"""Files as onnxruntime's own tools write them: fused by its optimizers, quantized with and without calibration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
from onnxruntime.transformers import optimizer
from torch import Tensor, nn
from transformers import BertConfig, BertModel

import structprune
from structprune.plan import make, prove, realize
from tests.onnx.exported import model_of

RATIO = 0.5
TOLERANCE = 1e-5  # float32, a share of the largest output


class Noise(CalibrationDataReader):
    """Two batches for an image model."""

    def __init__(self, path: Path) -> None:
        (given,) = onnxruntime.InferenceSession(str(path)).get_inputs()
        shape = [size if isinstance(size, int) else 2 for size in given.shape]
        generator = np.random.default_rng(0)
        self.batches = [{given.name: generator.standard_normal(shape).astype(np.float32)} for _ in range(2)]

    def get_next(self) -> Any:
        return self.batches.pop() if self.batches else None


def fuse(path: Path, to: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(to)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def quantize(is_per_channel: bool) -> Callable[[Path, Path], None]:
    def run(path: Path, to: Path) -> None:
        quantize_static(path, to, Noise(path), per_channel=is_per_channel, weight_type=QuantType.QInt8)

    return run


def quantize_by_range(path: Path, to: Path) -> None:
    quantize_dynamic(path, to, per_channel=True)


WAYS: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "fused": (fuse, ""),
    "quantized by tensor": (quantize(False), "DequantizeLinear"),
    "quantized by channel": (quantize(True), "DequantizeLinear"),
    "quantized by range": (quantize_by_range, "DynamicQuantizeLinear"),
}


def entries(path: Path) -> int:
    return sum(prod(tensor.dims) for tensor in onnx.load(path).graph.initializer)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["resnet20", "mobilenet", "vit"])
def test_half_goes_exactly(name: str, way: str, tmp_path: Path) -> None:
    path, made = tmp_path / "model.onnx", tmp_path / "made.onnx"
    path.write_bytes(model_of(name, "older").SerializeToString())
    write, kind = WAYS[way]
    write(path, made)
    kinds = Counter(node.op_type if not node.domain else node.domain for node in onnx.load(made).graph.node)
    assert kinds[kind] if kind else kinds["com.microsoft"]
    assert structprune.analyze(made).removable("params") > 0.8
    small = structprune.shrink(made, RATIO, output_path=tmp_path / "small.onnx", verify="numeric")
    assert entries(small) < 0.56 * entries(made)
    onnxruntime.InferenceSession(str(small))


class Bert(nn.Module):
    """A small one with a tensor for an answer, written as onnxruntime's optimizer knows it."""

    def __init__(self) -> None:
        super().__init__()
        config = BertConfig(vocab_size=100, max_position_embeddings=32, hidden_size=64, num_hidden_layers=2,
                            num_attention_heads=4, intermediate_size=128, attn_implementation="eager")  # fmt: skip
        self.model = BertModel(config)
        for parameter in self.parameters():
            if parameter.dim() == 1:
                # Exporters store equal vectors once.
                parameter.data += 0.1 * torch.rand(parameter.shape)

    def forward(self, ids: Tensor, mask: Tensor, kinds: Tensor) -> Tensor:
        found: Tensor = self.model(input_ids=ids, attention_mask=mask, token_type_ids=kinds).last_hidden_state
        return found


def test_a_fused_bert_loses_heads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 100, (2, 16))
    path, names = str(tmp_path / "bert.onnx"), ["input_ids", "attention_mask", "token_type_ids"]
    torch.onnx.export(
        Bert().eval(), (ids, torch.ones_like(ids), torch.zeros_like(ids)), path, dynamo=False, input_names=names,
        dynamic_axes={name: {0: "batch", 1: "length"} for name in names}, opset_version=14, verbose=False,
    )  # fmt: skip
    fused = optimizer.optimize_model(path, "bert", num_heads=4, hidden_size=64, opt_level=0).model
    kinds = {node.op_type for node in fused.graph.node}
    assert kinds >= {"Attention", "EmbedLayerNormalization", "SkipLayerNormalization", "BiasGelu"}
    plan = structprune.plan(fused, 0.4, verify="numeric", scope="uniform")
    assert any(plan.sizes[name] == 4 > len(kept) for name, kept in plan.keep.items()), "heads go"
    small = plan.apply(fused)
    assert {node.op_type for node in small.graph.node} >= {"Attention", "EmbedLayerNormalization"}
    analysis = structprune.analyze(fused)
    realized = realize(analysis, plan.kept(analysis), analysis.frontend.constraints(analysis.solution, "auto"))
    found = prove(analysis, realized, make(analysis, realized))
    assert found.error is not None and found.error <= TOLERANCE
