"""What is simulated for training, with the source of every assumption."""
