"""What a run leaves, for who writes it and who reads it. Needs no torch."""
