"""Everything between a question and a judged prediction: a method's parts, its policies, what is asked."""
