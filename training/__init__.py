"""Data and training of DENet."""

from denet_program import begin

begin(__name__)
