"""Other programs that do our job, for the benchmark: each keeps users the way that its framework recommends."""
