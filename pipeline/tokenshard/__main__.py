"""`python -m tokenshard` is the `tokenshard` command."""

from tokenshard.cli.main import main

main()
