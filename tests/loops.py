"""Many cases as one test: seeds and combinations that would fill the list of tests and say no more there."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch


def for_every(names: str | tuple[str, ...], values: Iterable[Any]) -> Callable:
    """As ``pytest.mark.parametrize``, with all cases in one test; a failure names its case. Can be stacked.

    Every case starts from the same state of torch's generator, as every test does. Not for tests that write files.
    """
    keys = tuple(name.strip() for name in names.split(",")) if isinstance(names, str) else tuple(names)
    cases = [dict(zip(keys, value if len(keys) > 1 else (value,))) for value in values]
    assert cases, "a loop without cases tests nothing"

    def decorate(test: Callable) -> Callable:
        signature = inspect.signature(test)

        @functools.wraps(test)
        def loop(**arguments: Any) -> None:
            for case in cases:
                torch.manual_seed(0)
                try:
                    test(**arguments, **case)
                except Exception as error:
                    error.add_note(f"with {case}")
                    raise

        rest = [parameter for name, parameter in signature.parameters.items() if name not in keys]
        loop.__signature__ = signature.replace(parameters=rest)  # type: ignore[attr-defined]
        return loop

    return decorate
