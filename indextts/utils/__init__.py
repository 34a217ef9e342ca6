"""What the hardware offers and how full it is."""
