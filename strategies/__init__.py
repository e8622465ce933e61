"""What learns and what is protected: one file each, found by its name.

A new one is a new file with one subclass of ``base.Strategy``.
"""
