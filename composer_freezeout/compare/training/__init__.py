"""The runs of a comparison: trained, taken over, counted."""
