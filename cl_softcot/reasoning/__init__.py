"""Ways of thinking: one file each, found by its name. A new one is a new file with one subclass of ``base.Reasoning``."""
