"""sgd_step_ beyond what every operator must do: torch's own steps, rows, memory, launches."""
