"""The `tokenshard` command. Commands are imported when they are called, so that `--help` stays fast."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

import click

COMMANDS = {
    "convert": ("tokenshard.cli.modalities:convert", "Turn raw data into a token dataset."),
    "transcode": ("tokenshard.cli.codes:transcode", "Rewrite a dataset: codec, levels, shards, keys, columns."),
    "export": ("tokenshard.cli.exchange:export", "Write a token dataset in the format of another program."),
    "import": ("tokenshard.cli.codes:import_", "Turn ids in another format into a token dataset."),
    "run": ("tokenshard.cli.convert:run", "Run or resume a job spec (YAML)."),
    "submit": ("tokenshard.cli.cluster:submit", "Run a job spec on a Ray cluster."),
    "status": ("tokenshard.cli.cluster:status", "Say how far a job is: from its output, or from the cluster."),
    "logs": ("tokenshard.cli.cluster:logs", "Print what a submitted job has written."),
    "stop": ("tokenshard.cli.cluster:stop", "Stop a submitted job."),
    "retry": ("tokenshard.cli.convert:retry", "Convert the rejected inputs of a dataset again."),
    "train": ("tokenshard.cli.train:train", "Train models from token shards."),
    "eval": ("tokenshard.cli.model:evaluate", "Evaluate a trained model on a token dataset."),
    "probe": ("tokenshard.cli.model:probe", "Measure what the encoder of a model knows: linear, attentive, k-NN."),
    "predict": ("tokenshard.cli.model:predict", "Tokenize and classify raw images with a trained model."),
    "search": ("tokenshard.cli.search:search", "Search documents by late interaction, and measure how well."),
    "tokenizer": ("tokenshard.cli.tokenizer_reports:tokenizer", "Train, import, evaluate and list tokenizers."),
    "grid": ("tokenshard.cli.grid_commands:grid", "Decode grids of a dataset; calibrate how sure they are."),
    "info": ("tokenshard.cli.inspect:info", "Say what is in a dataset."),
    "stats": ("tokenshard.cli.inspect:stats", "Measure a dataset's codes: bits per id, entropy, overhead."),
    "report": ("tokenshard.cli.report:report", "Say what a dataset costs and keeps, as one HTML file or as text."),
    "verify": ("tokenshard.cli.inspect:verify", "Check a dataset against its manifest and checksums."),
    "view": ("tokenshard.cli.view:view", "Browse a dataset in the browser: samples, codes, storage, rates, maps."),
    "show": ("tokenshard.cli.inspect:show", "Draw samples: reconstruction, and original where it is at hand."),
    "delete": ("tokenshard.cli.delete:delete", "Delete samples by key or by what their columns say."),
    "compact": ("tokenshard.cli.delete:compact", "Write shards without the rows that were deleted."),
    "clean": ("tokenshard.cli.inspect:clean", "Remove what is not part of a finished dataset."),
    "doctor": ("tokenshard.cli.doctor:doctor", "Check what works here: packages, codecs, GPU, stores, Ray."),
    "completion": ("tokenshard.cli.completion:completion", "Print what makes a shell complete commands."),
    "demo": ("tokenshard.cli.demo:demo", "Convert, train and compare on real images that ship with packages."),
}
"""Name -> (`module:command`, one line of help)."""
NAME, COMPLETE = "tokenshard", "_TOKENSHARD_COMPLETE"
"""Of the program, and of the variable in which a shell asks for completions."""


class LazyGroup(click.Group):
    """Lists commands from :data:`COMMANDS` and imports one only to run it or to show its own help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="tokenshard", prog_name="tokenshard")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Keep a dataset as tokens instead of pixels, and train from them.

    \b
    Example:
      tokenshard convert images photos/ tokens/
      tokenshard info tokens/
    """
    ctx.obj = {"debug": debug}
    if os.environ.get("NO_COLOR"):
        ctx.color = False
        os.environ.setdefault("NUMBA_DISABLE_ERROR_MESSAGE_HIGHLIGHTING", "1")  # it writes one code at the very end


def main(arguments: list[str] | None = None) -> None:
    """Entry point: errors become one line on stderr and an exit code (0 ok, 1 failed, 2 usage, 3 too many rejects)."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        code: Any = cli.main(words, prog_name=NAME, complete_var=COMPLETE, standalone_mode=False)
    except click.ClickException as error:
        from tokenshard.cli.suggest import with_suggestion

        with_suggestion(error).show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("tokenshard: stopped; run the same command again to go on from here", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
    except Exception as error:
        from tokenshard.errors import TokenshardError

        if "--debug" in words or not isinstance(error, TokenshardError | MemoryError | OSError):
            raise
        click.echo(f"tokenshard: {' '.join(str(error).split()) or type(error).__name__}", err=True)
        sys.exit(error.exit_code if isinstance(error, TokenshardError) else 1)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
