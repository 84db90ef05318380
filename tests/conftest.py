import pytest

from training.synthetic import make_dataset


@pytest.fixture(scope="session")
def collection(tmp_path_factory):
    """A small synthetic collection; no test may change it."""
    return make_dataset(tmp_path_factory.mktemp("data") / "collection", 24, seed=2, min_seconds=1.0, max_seconds=1.5)
