"""Which file of a trainer's checkpoint folder is the model, or why none can be read."""

from pathlib import Path

# The safer format first. Hugging Face, PEFT, diffusers, accelerate, DeepSpeed, Megatron-LM.
_MODEL_FILES = (
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
    "model.safetensors",
    "pytorch_model.bin",
    "adapter_model.safetensors",
    "adapter_model.bin",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
    "pytorch_lora_weights.safetensors",
    "pytorch_lora_weights.bin",
    "pytorch_model_fsdp.bin",
    "mp_rank_00_model_states.pt",
    "model_optim_rng.pt",
    "mp_rank_00/model_optim_rng.pt",
)


def model_file(path: Path) -> Path | None:
    """The file that a trainer's convention names; None if there is none of them."""
    found = next((path / name for name in _MODEL_FILES if (path / name).is_file()), None)
    if found is not None:
        return found
    # Hugging Face's trainer puts DeepSpeed's files into a folder of their own.
    inner = sorted(path.glob("global_step*/mp_rank_00_model_states.pt"))
    return inner[0] if len(inner) == 1 else None


def refusal(path: Path) -> str | None:
    """Why a folder cannot be read though it is a checkpoint, and the way that works; else None."""
    sharded = next(
        (p for p in (path, *_folders(path)) if (p / ".metadata").is_file() and _has(p, "*.distcp")),
        None,
    )
    if sharded is not None and model_file(path) is None:
        return (
            f"{path}: a torch.distributed.checkpoint ({len(list(sharded.glob('*.distcp')))} "
            ".distcp files), whose index is a pickle that only torch reads; where you trust it, "
            "make a file of each step: python -m torch.distributed.checkpoint.format_utils "
            f"dcp_to_torch {sharded} {path.name}.pt"
        )
    for folder in (path, *_folders(path)):
        if _has(folder, "zero_pp_rank_*_model_states.pt"):
            return (
                f"{path}: DeepSpeed ZeRO-3 keeps parts of the weights in each of its files; gather "
                f"them with the script that it put beside the folder: python zero_to_fp32.py "
                f"{folder.parent} OUTPUT_FOLDER"
            )
        parts = {p.name[8:10] for p in folder.glob("mp_rank_*")}
        stages = [p for p in folder.glob("mp_rank_00_0*") if p.is_dir()]
        if len(parts) > 1 or len(stages) > 1:
            return (
                f"{path}: the model is cut into {max(len(parts), len(stages))} parallel parts "
                "(mp_rank_*); merge them first: for Megatron-LM with tools/checkpoint/convert.py "
                "--target-tensor-parallel-size 1 --target-pipeline-parallel-size 1, for DeepSpeed "
                "with its universal checkpoint (ds_to_universal.py)"
            )
    return None


def models_below(path: Path) -> list[str]:
    """Names of the folders inside that hold a model each, such as ``unet`` of diffusers."""
    return [p.name for p in _folders(path) if model_file(p) is not None]


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir())


def _has(path: Path, pattern: str) -> bool:
    return next(path.glob(pattern), None) is not None
