"""What adapters for GGUF files do, over llama-cpp-python."""

from __future__ import annotations

import pytest

from tests.engines.test_engine_gguf import (
    test_a_lora_adapter_changes_the_answer_and_without_weight_it_does_not,
    test_a_model_that_computes_no_numbers_is_not_served,
    test_an_adapter_that_is_none_is_told,
    test_the_chunk_of_a_prompt_is_measured,
)

__all__ = [
    "test_a_lora_adapter_changes_the_answer_and_without_weight_it_does_not",
    "test_a_model_that_computes_no_numbers_is_not_served",
    "test_an_adapter_that_is_none_is_told",
    "test_the_chunk_of_a_prompt_is_measured",
]
pytestmark = [pytest.mark.process, pytest.mark.model]
