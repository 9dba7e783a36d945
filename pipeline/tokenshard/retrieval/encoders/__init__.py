"""Encoders of pages and queries: the vectors that late interaction compares."""
