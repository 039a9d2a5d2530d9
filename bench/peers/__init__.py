"""Comparable systems for the benchmark. Each stores users in the way that its framework recommends."""
