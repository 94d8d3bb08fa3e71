"""What the rows of the benchmark and the demo share."""
