"""`lawa`: average the checkpoints of any Orbax directory, without the code that wrote it."""

import sys
from collections.abc import Sequence

import lawa_jax
from lawa_jax import script

DESCRIPTION = """Latest Weight Averaging for any Orbax trajectory.

The version is printed by `lawa --version`.

Exit codes: 0 ok, 1 run failed, 2 usage, selection or mismatch, 3 I/O or corruption, 130/143 signal.
"""


def execute(argv: Sequence[str]) -> int | None:
    """Parse and run one command; errors are raised."""
    if list(argv) == ["--version"]:
        print(f"lawa {lawa_jax.__version__}")
        return None
    with script.importing():
        import tyro

        from lawa_jax.cli.average import Average
        from lawa_jax.cli.compare import Diff, Verify
        from lawa_jax.cli.inspect import Inspect
        from lawa_jax.cli.ls import Ls
        from lawa_jax.cli.reconstruct import Reconstruct
        from lawa_jax.cli.soup import Soup
        from lawa_jax.cli.sweep import Sweep

    command = tyro.extras.subcommand_cli_from_dict(
        {
            "ls": Ls,
            "inspect": Inspect,
            "average": Average,
            "sweep": Sweep,
            "soup": Soup,
            "reconstruct": Reconstruct,
            "diff": Diff,
            "verify": Verify,
        },
        args=list(argv),
        prog="lawa",
        description=DESCRIPTION,
    )
    code: int | None = command()
    return code


def main() -> None:
    """The console script."""
    script.run(lambda: execute(sys.argv[1:]))


if __name__ == "__main__":
    main()
