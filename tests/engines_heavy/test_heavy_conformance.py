"""The suites of `tests/engines` that every engine passes, over the engines of this ring (fixtures in `conftest.py`)."""

from __future__ import annotations

import inspect

import pytest

from tests.engines import test_engine_conformance, test_engine_faults, test_maker_conformance

pytestmark = pytest.mark.process

for _suite in (test_engine_conformance, test_engine_faults, test_maker_conformance):
    for _name, _test in vars(_suite).items():
        if _name.startswith("test_") and {"any_engine", "any_maker"} & set(inspect.signature(_test).parameters):
            globals()[_name] = _test
