"""What the records of a comparison say."""
