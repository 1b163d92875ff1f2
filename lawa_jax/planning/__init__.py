"""What a step takes on a TPU pod slice, found by compiling for it on a machine without one."""
