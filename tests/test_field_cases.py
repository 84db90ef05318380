"""What comes out of the inputs that people have is what is right (field_cases.py)."""

import field_cases
import pytest


@pytest.mark.parametrize("number", sorted(field_cases.CASES))
def test_case(number):
    assert field_cases.answer(number) == field_cases.CASES[number][1]
