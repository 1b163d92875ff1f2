"""The subcommands of `lawa`, one a file: a dataclass of arguments and what to do with them."""
