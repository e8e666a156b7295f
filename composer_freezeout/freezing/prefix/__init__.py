"""The frozen prefix: what stands still in it, and what it need not compute."""
