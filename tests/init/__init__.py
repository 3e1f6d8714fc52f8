"""Tests of init."""
