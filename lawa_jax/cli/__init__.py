"""`lawa`: one file a command, each a dataclass of arguments and what to do with them."""
