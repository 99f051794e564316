"""Commands as a user types them, run in this process."""

from __future__ import annotations

from click.testing import CliRunner, Result

from sde_onnx.cli import main


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def done(*arguments: object) -> Result:
    """The command succeeds."""
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def refuses(message: str, *arguments: object, status: int = 1) -> Result:
    """The command fails with one line that holds the message, and no traceback."""
    result = run(*arguments)
    assert result.exit_code == status, result.output
    assert message in result.output
    if status == 1:
        assert result.output.startswith("Error: ")
        assert result.output.count("\n") == 1
    return result
