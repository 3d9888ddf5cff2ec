"""Rows of scores/ as flat arrays of labelled words, which every table is made of."""
