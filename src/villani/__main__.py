"""The command `villani`, and `python -m villani`: nothing is imported before an interruption is one line."""

from villani.commands.session import run


def main() -> None:
    """Run a command; see `villani.commands.session`."""
    run(_command)


def _command() -> int | None:
    from villani.cli import command

    return command()


if __name__ == "__main__":
    main()
