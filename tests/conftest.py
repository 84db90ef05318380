import os
import uuid
import zlib

import pytest
import torch

from training.synthetic import make_dataset

# The seed of what is drawn anew in each run: tests print it, and it is one for all processes of a run, which have to agree on the
# names of the tests.
RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID") or uuid.uuid4().hex
os.environ.setdefault("DENET_SEED", str(zlib.crc32(RUN.encode())))


def pytest_runtest_setup(item):
    """What a test draws without a seed of its own is the same whatever tests were before it, fixtures' draws included."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def collection(tmp_path_factory):
    """A small synthetic collection; no test may change it."""
    return make_dataset(tmp_path_factory.mktemp("data") / "collection", 24, seed=2, min_seconds=1.0, max_seconds=1.5)
