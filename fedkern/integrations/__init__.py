"""fedkern's methods in other federated-learning frameworks."""
