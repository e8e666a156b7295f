"""``composer-freezeout plan``: what freezes when, and what that saves, before training."""
