"""Settings of JAX that hold for a whole process; to be made before a device is used."""

import os
from pathlib import Path

import jax


def prepare(*, deterministic: bool = False, compile_cache: str | None = None) -> None:
    """Apply what the command line says of the process.

    Args:
      deterministic: bit-reproducible operations on a GPU (a CPU has no others).
      compile_cache: directory of compiled programs, which later processes take instead of compiling
        again; made if missing. Programs are found by content, devices and versions.
    """
    if deterministic:
        # Read when the first device is used.
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()
    if compile_cache is not None:
        directory = Path(compile_cache).expanduser().absolute()
        directory.mkdir(parents=True, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", str(directory))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
