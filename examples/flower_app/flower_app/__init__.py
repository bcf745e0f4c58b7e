"""A Flower app with fedkern's methods."""
