"""What a subscriber imports."""
