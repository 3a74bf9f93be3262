"""Entry point of the `driftrae` command and of `python -m driftrae_cli`."""


def main() -> None:
    """Run the command line; ends the process with an exit code."""
    from driftrae_cli.cli.app import app

    app(prog_name="driftrae")


if __name__ == "__main__":
    main()
