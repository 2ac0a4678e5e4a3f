"""What every command shares: how an error becomes one sentence and an exit code."""

import sys
import traceback
from io import StringIO
from typing import Any

import click

from streamfluence.cli._clean import clean, forget, say, say_lines, unwritten
from streamfluence.cli._interrupts import Interruptible
from streamfluence.errors import BudgetError, Interrupted, StorageError, StreamfluenceError

BUG_EXIT_CODE = 1


class _Asked:
    """What parses arguments: usage errors come out clean, and `--help | head` ends quietly."""

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        try:
            made: click.Context = super().make_context(*arguments, **options)  # type: ignore[misc]
            return made
        except click.ClickException as error:
            raise _cleaned(error) from None
        except OSError as error:  # `streamfluence --help | head`
            raise _unwritten(error) from None


class Command(_Asked, click.Command):
    """A command of the program."""


class Commands(_Asked, click.Group):
    """A group of commands inside the program."""

    command_class = Command


class Program(_Asked, click.Group):
    """A group of commands that ends every error with its documented exit code.

    Usage errors are click's own (2), a ``StreamfluenceError`` brings its code, and
    what nobody foresaw shows its traceback and ends with 1.
    """

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of a user's work, not of the alphabet."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with Interruptible() as interrupts:
                return super().invoke(ctx)
        except StreamfluenceError as error:
            say(f"error: {error}")
            if isinstance(error, Interrupted):
                interrupts.leave()
            ctx.exit(error.exit_code)
        except click.ClickException as error:
            raise _cleaned(error) from None
        except (click.exceptions.Exit, click.Abort):
            raise
        except MemoryError as error:
            what = error or "an allocation failed"
            say(f"error: not enough memory: {what}; ask for less, or use a larger machine")
            ctx.exit(BudgetError.exit_code)
        except Exception:
            say_lines(traceback.format_exc())
            say("error: this is a bug in streamfluence; please report it")
            ctx.exit(BUG_EXIT_CODE)


def _cleaned(error: click.ClickException) -> click.ClickException:
    """Return a usage error that quotes what the user gave so that it can do nothing."""
    error.message = clean(error.message)  # type: ignore[misc]
    show = error.show

    def shown(file: Any = None) -> None:
        text = StringIO()
        show(text)
        say_lines(text.getvalue())

    error.show = shown  # type: ignore[method-assign]
    return error


def _unwritten(error: OSError) -> click.exceptions.Exit:
    """Return how the program ends that could not print: quietly where the reader has all it wants."""
    forget(sys.stdout)
    if isinstance(error, BrokenPipeError):
        return click.exceptions.Exit(0)
    say(f"error: {unwritten(error)}")
    return click.exceptions.Exit(StorageError.exit_code)
