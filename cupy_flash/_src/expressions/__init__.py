"""Expressions that traced functions are: a graph, what it computes, its derivatives, its ranges, and its texts."""
