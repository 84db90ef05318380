"""Proof that `denet_torch` computes what the published DENet computes.

    pytest -n 2 --dist loadfile parity_tests                     everything, with the report at the end
    pytest "parity_tests/test_layers.py::test_reference[GRU]"    one layer alone against TensorFlow
    pytest parity_tests -k GRU                                   every test that names it: drawn cases, recordings, planted faults

`golden/` holds recordings of the original (see its README), `recordings.py` reads them, `weights.py` says which weight is which,
`cases.py` draws the cases of each layer, `sides.py` runs a case on both sides, `port_side.py` the port's half of that without
TensorFlow, `checks.py` compares and sets the bars, and `test_mutations.py` plants faults in the port and requires those same
checks to fail.
"""
