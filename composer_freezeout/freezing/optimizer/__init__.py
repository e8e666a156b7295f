"""A param group per unit, whatever the optimizer."""
