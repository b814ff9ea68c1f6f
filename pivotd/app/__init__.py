"""What each request does: domains, pivots, verdicts."""
