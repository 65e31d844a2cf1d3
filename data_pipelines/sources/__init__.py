"""Layouts that data sets come in, each read into one clip table; files opened inside archives."""
