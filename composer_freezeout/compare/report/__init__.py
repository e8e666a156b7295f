"""The report of a comparison, and the command that writes it anew."""
