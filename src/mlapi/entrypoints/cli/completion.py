"""``mlapi completion``: tab completion for the shell."""

import click
from click.shell_completion import get_completion_class


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(context: click.Context, shell: str) -> None:
    """Print the completion script for SHELL.

    \b
    In bash, enable it with: eval "$(mlapi completion bash)"
    """  # noqa: D301 - the backspace tells click not to rewrap the paragraph
    script_class = get_completion_class(shell)
    assert script_class is not None  # noqa: S101 - click supports these three
    click.echo(script_class(context.find_root().command, {}, "mlapi", "_MLAPI_COMPLETE").source())
