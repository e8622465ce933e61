"""What a run will take: memory, time, and what to change where it is too much."""
