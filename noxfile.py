"""Sessions run in the environment that nox is installed in: `pip install -e '.[all]'` brings everything, nox included."""

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["tests"]


@nox.session
def tests(session):
    """Every test: parity, units, lint."""
    session.run("ruff", "check", ".")
    session.run("python", "-m", "pytest", "-n", "2", "--dist", "loadfile", *session.posargs)


@nox.session
def parity(session):
    """The parity suite alone; prints and writes the parity report."""
    session.run("python", "-m", "pytest", "-n", "2", "--dist", "loadfile", "parity_tests", *session.posargs)
