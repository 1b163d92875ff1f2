"""Averages of stored trajectories: recipe, preparation, one pass, record, verification."""
