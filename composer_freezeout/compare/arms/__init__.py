"""The arms of a comparison: what is trained."""
