"""What does each cost? What `compare.py bench` does."""
