"""The paper: when a layer freezes, and its learning rate until then. Needs no torch."""
