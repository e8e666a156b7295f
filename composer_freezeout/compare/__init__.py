"""``composer-freezeout compare``, ``sweep`` and ``report``: whether freezing pays."""
