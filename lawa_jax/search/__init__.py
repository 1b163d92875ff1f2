"""Which average is best: evaluators, sweeps with results, soups, learned coefficients."""
