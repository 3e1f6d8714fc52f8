"""Tests of subsets."""
