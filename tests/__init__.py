"""Tests of pivotd."""
