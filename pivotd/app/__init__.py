"""Carries out requests: domains, pivots, verdicts."""
