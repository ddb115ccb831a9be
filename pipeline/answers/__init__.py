"""Answers for pictures that are not in a data set: a visitor's own."""
