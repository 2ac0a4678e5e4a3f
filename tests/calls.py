"""Call the commands as a user would, and expect them to work or to be refused."""

from click.testing import CliRunner, Result

from streamfluence.cli import main


def invoke(*arguments) -> Result:
    """Return the result of a command, whatever it was."""
    return CliRunner().invoke(main, [str(a) for a in arguments])


def done(*arguments) -> Result:
    """Return the result of a command that has to work."""
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result


def ok(*arguments) -> str:
    """Return what a command that has to work prints to stdout."""
    return done(*arguments).stdout


def refused(*arguments) -> str:
    """Return the one sentence with which a command refuses its input."""
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert len(result.stderr.splitlines()) == 1, result.stderr
    return result.stderr
