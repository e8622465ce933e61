"""What the process is: one of several, several runs in step, and how exactly it computes."""
