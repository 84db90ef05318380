"""Command lines."""

from denet_program import begin

begin(__name__)
