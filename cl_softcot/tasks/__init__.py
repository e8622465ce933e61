"""Tasks: named sources of questions, written steps and answers that also judge an answer. One file a family."""
