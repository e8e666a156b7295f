"""``composer-freezeout sweep``: a search for settings of FreezeOut that pay."""
