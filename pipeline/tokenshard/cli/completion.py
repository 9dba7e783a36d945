"""`tokenshard completion`: what makes a shell complete commands and options."""

from __future__ import annotations

import click

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS), metavar="SHELL")
def completion(shell: str) -> None:
    """Print what makes SHELL (bash, zsh or fish) complete commands, options and their values.

    \b
    Example:
      tokenshard completion bash > ~/.local/share/bash-completion/completions/tokenshard
      tokenshard completion zsh > ~/.zfunc/_tokenshard
      tokenshard completion fish > ~/.config/fish/completions/tokenshard.fish
    """
    from click.shell_completion import get_completion_class

    from tokenshard.cli.main import COMPLETE, NAME, cli

    found = get_completion_class(shell)
    assert found is not None, "click completes for all of these shells"
    click.echo(found(cli, {}, NAME, COMPLETE).source(), nl=False)
