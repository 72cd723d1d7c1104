"""What costs more than a correlation: it looks again at what a validation found."""
