"""`python -m tests.attack.survey zeros NAME ~PART`: what fails, a line each, and what cannot be shrunk at all."""

from __future__ import annotations

import importlib
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any


def survey(cases: Mapping[str, Any], attack: Callable[[Any], Any], wanted: list[str]) -> None:
    failed, frozen = [], []
    for name, case in cases.items():
        if wanted and name not in wanted and not any(each[1:] in name for each in wanted if each[0] == "~"):
            continue
        start = time.process_time()
        try:
            outcome = attack(case)
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = "" if isinstance(error, AssertionError) else f" [{last.filename.rpartition('/')[2]}:{last.lineno}]"
            failed.append(f"{case.area:10} {name}: {type(error).__name__}: {str(error).splitlines()[0][:300]}{place}")
            print(failed[-1], flush=True)
            continue
        if not outcome.groups:
            frozen.append(name)
        if 0 < len(wanted) < 9:
            print(name, outcome, f"{time.process_time() - start:.1f} s")
        if (taken := time.process_time() - start) > 5:
            print(f"slow: {name} {taken:.1f} s")
    print(f"{len(failed)} of {len(cases)} fail; frozen whole: {', '.join(frozen)}")


if __name__ == "__main__":
    module, *names = sys.argv[1:]
    oracle = "onnx_oracle" if module.startswith("onnx") else "oracle"
    attack = importlib.import_module(f"tests.attack.{oracle}").attack
    survey(importlib.import_module(f"tests.attack.{module}").CASES, attack, names)
