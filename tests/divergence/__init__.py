"""Tests of divergence."""
