"""Sessions run in the environment that nox is installed in: `pip install -e '.[all]'` brings everything, nox included."""

import sys

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["tests"]

PYTEST = (sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadfile")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1"}  # for each of the two workers


@nox.session
def tests(session):
    """Every test: parity, units, lint."""
    session.run(sys.executable, "-m", "ruff", "check", ".")
    session.run(*PYTEST, *session.posargs, env=ONE_THREAD)


@nox.session
def parity(session):
    """The parity suite alone; prints and writes the parity report."""
    session.run(*PYTEST, "parity_tests", *session.posargs, env=ONE_THREAD)


@nox.session
def stress(session):
    """An hour of kills, stops and full disks; --minutes N for less. The tests take a few cases of it."""
    environment = ONE_THREAD | {"PYTHONPATH": ".", "MALLOC_PERTURB_": "165"}
    session.run(sys.executable, "tests/stress.py", *session.posargs, env=environment)


@nox.session
def commands(session):
    """The command lines of README and docs that take minutes to hours, or a network, as written; -- WORD for those with it."""
    session.run(sys.executable, "tests/test_docs_commands.py", *session.posargs, env={"PYTHONPATH": "."})


@nox.session
def gpu(session):
    """On a GPU: check and measure, and write what was measured into docs/gpu.md."""
    session.run(sys.executable, "-m", "tools.gpu_report", "--page", "docs/gpu.md", *session.posargs)


@nox.session
def docs(session):
    """The documentation site, docs/_build/html/index.html; warnings are errors."""
    options = ("-W", "--keep-going", "-q", "-b", "html")
    session.run(sys.executable, "-m", "sphinx", *options, "docs", "docs/_build/html", *session.posargs)
