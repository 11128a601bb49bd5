"""From what is remembered of objects to the arrays the model takes; training imports the same functions."""
