"""Carries the decisions out: one supervisor per domain, one driver per pivot."""
