"""Aligned parents in, one state out."""
