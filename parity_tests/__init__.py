"""Proof that `denet_torch` computes what the published DENet computes.

    pytest parity_tests                              everything, with the report at the end
    pytest parity_tests -k GRU                       one layer alone: every test that names it
    pytest parity_tests/test_layers.py -k "GRU and reference"   only the drawn cases against TensorFlow

`golden/` holds recordings of the original (see its README), `weights.py` says which weight is which, `cases.py` draws
the cases of each layer, `sides.py` runs a case on both sides, `checks.py` compares and sets the bars, and
`test_mutations.py` plants faults in the port and requires those same checks to fail.
"""
