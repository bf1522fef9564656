"""Odd calls end in a right result or in an error of ours."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from structprune.errors import StructpruneError, VerificationError
from tests.attack.odd import CALLS
from tests.attack.oracle import differences, fresh, kept_slices, zeroed

# What no error of ours may stand for: the caller's own way out.
OWN = {
    "an_error_that_is_no_exception": SystemExit,
    "given_score_raises": ZeroDivisionError,
    "given_score_with_too_few_arguments": TypeError,
}


def everything(result: Any, depth: int = 0) -> list[Tensor]:
    """All tensors of a result, in whatever holds them, and the numbers beside them."""
    if isinstance(result, Tensor):
        more = everything(vars(result), depth + 1) if getattr(result, "__dict__", None) else []
        return [result.to_dense() if result.layout is not torch.strided else result, *more]
    if isinstance(result, np.ndarray):
        return everything(result.tolist(), depth) if result.dtype == object else [torch.from_numpy(result)]
    if isinstance(result, bool | int | float):
        return [torch.tensor(result)]
    if isinstance(result, str | bytes | type(None)) or depth > 8:
        return [torch.tensor(list(result if isinstance(result, bytes) else str(result).encode()), dtype=torch.uint8)]
    if isinstance(result, nn.Module):
        held = [each for key, each in vars(result).items() if not key.startswith("_") and key != "training"]
        return [*result.parameters(), *result.buffers(), *everything(held, depth + 1)]
    if hasattr(result, "keys"):
        return [each for key in result for each in everything(result[key], depth + 1)]
    if hasattr(result, "__slots__") and not hasattr(result, "__iter__"):
        return [each for name in result.__slots__ for each in everything(getattr(result, name), depth + 1)]
    if hasattr(result, "__self__"):
        return everything(result.__self__, depth + 1)
    if hasattr(result, "__closure__"):
        return [each for cell in result.__closure__ or () for each in everything(cell.cell_contents, depth + 1)]
    if hasattr(result, "args") and hasattr(result, "func"):
        return everything(result.args, depth + 1)
    if hasattr(result, "__iter__"):
        return [each for item in result for each in everything(item, depth + 1)]
    if hasattr(result, "__dict__"):
        public = {key: value for key, value in vars(result).items() if not key.startswith("__")}
        return everything(public, depth + 1)
    return []


def outputs(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    with torch.no_grad():
        return [each.detach().clone() for each in everything(model(*inputs))]


@pytest.mark.parametrize("name", CALLS)
def test_a_right_result_or_an_error_of_ours(name: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            answer = CALLS[name](tmp_path)
        except StructpruneError as error:
            assert not isinstance(error, VerificationError), f"a bug shows: {error}"
            text = str(error)
            assert len(text) > 20 and text.replace("\n", "").isprintable(), repr(text)
            assert "This is a bug" not in text, text
            return
        except BaseException as error:
            if name in OWN and isinstance(error, OWN[name]):
                return
            raise
    assert isinstance(answer, tuple) and len(answer) == 3, f"no error, and {type(answer).__name__} came back"
    model, small, inputs = answer
    kept = kept_slices(model, small)
    for given in (inputs, fresh(inputs, 7)):
        with zeroed(model, kept):
            expected = outputs(model, given)
        found = outputs(small, given)
        said = differences(expected, found)
        assert not said, said
