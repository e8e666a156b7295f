"""``composer-freezeout step-time``: what a step takes with k units frozen."""
