"""``composer-freezeout run``: one YAML file, one training run, one record."""
