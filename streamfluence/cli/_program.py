"""What every command shares: how an error becomes one sentence and an exit code."""

import sys
import traceback
from typing import Any

import click

from streamfluence.cli._interrupts import Interruptible
from streamfluence.errors import Interrupted, StreamfluenceError

BUG_EXIT_CODE = 1


class Program(click.Group):
    """A group of commands that ends every error with its documented exit code.

    Usage errors are click's own (2), a ``StreamfluenceError`` brings its code, and
    what nobody foresaw shows its traceback and ends with 1.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of a user's work, not of the alphabet."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with Interruptible() as interrupts:
                return super().invoke(ctx)
        except StreamfluenceError as error:
            click.echo(f"error: {error}", err=True)
            if isinstance(error, Interrupted):
                interrupts.leave()
            ctx.exit(error.exit_code)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception:
            traceback.print_exc(file=sys.stderr)
            click.echo("error: this is a bug in streamfluence; please report it", err=True)
            ctx.exit(BUG_EXIT_CODE)
