"""What a model is: the first step watched, and the units that it shows."""
