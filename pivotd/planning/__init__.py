"""Turns a request and the state of the domain into the pivot to record. Changes nothing."""
