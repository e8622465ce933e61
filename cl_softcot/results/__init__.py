"""What a run leaves behind: read, summed up, kept. Needs no torch."""
