"""Single-threaded arithmetic, and the parity report at the end of the run, gathered from pytest-xdist's workers."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pytest
import tensorflow as tf
import torch

from denet_torch import using
from parity_tests.report import Report

# The float32 errors that are compared must not hang on how many cores share a sum.
torch.set_num_threads(1)
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)

RUN = pytest.StashKey[Report]()


def pytest_configure(config):
    config.stash[RUN] = Report()


@pytest.fixture(autouse=True)
def plain():
    """What is compared with TensorFlow is the plain text; a test of another backend names it."""
    with using("plain"):
        yield


@pytest.fixture
def report(pytestconfig) -> Report:
    return pytestconfig.stash[RUN]


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["parity"] = session.config.stash[RUN].rows


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    node.config.stash[RUN].merge(getattr(node, "workeroutput", {}).get("parity", {}))


def pytest_terminal_summary(terminalreporter, config):
    report = config.stash[RUN]
    if not report.rows:
        return
    report.write(config.rootpath)
    terminalreporter.section("parity report (parity_report.md, parity_report.json)")
    terminalreporter.write_line(report.markdown())
