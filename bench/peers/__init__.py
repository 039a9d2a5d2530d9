"""Comparable systems for the benchmark. Each stores users as its framework recommends."""
