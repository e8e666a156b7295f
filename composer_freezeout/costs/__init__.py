"""What a step costs, and what freezing saves of it."""
