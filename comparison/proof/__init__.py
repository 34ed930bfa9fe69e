"""Are the three the same network? What `compare.py parity`, `graph`, `relay`, `replicas` and `seeds` do."""
