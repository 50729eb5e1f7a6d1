"""Measurements, of trained networks, data and runs, and the exact numbers that they are held against."""
