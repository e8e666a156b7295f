"""A project of its own, which composer_freezeout knows nothing of."""
