"""Freezing in any torch loop. Knows nothing of Composer."""
