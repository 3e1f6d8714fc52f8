"""Tests of advise."""
